"""Training: labelled images in; a model, its calibration, an evaluation and a policy out (`python -m train`)."""
