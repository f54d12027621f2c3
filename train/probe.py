"""The linear probe: fit the head to frozen features first, so that fine-tuning does not tear up the backbone for a random head.

Linear probing, then fine-tuning: Kumar et al., 2022, https://arxiv.org/abs/2202.10054. The probe is also the baseline to beat.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from moderation_client.contract import Task
from train.loaders import Loaders
from train.loop import Classifier, freeze, precision_of
from train.sampling import Draw

PENALTY = 1e-2
"""Weight of the squared head in the probe's loss, as multiple of the features' variance."""
STEPS = 200
PROBE_EPOCH = 1_000_000
"""The probe draws its random numbers as if in these epochs, which fine-tuning never reaches."""


def fit_head(classifier: Classifier, loaders: Loaders) -> None:
    """Set the head to a logistic regression on the frozen features of `probe_epochs` augmented passes."""
    features, targets = _features(classifier, loaders)
    weight, bias = logistic_regression(features, targets, task=classifier.model.task)
    with torch.no_grad():
        classifier.model.head.weight.copy_(weight)
        classifier.model.head.bias.copy_(bias)


def _features(classifier: Classifier, loaders: Loaders) -> tuple[Tensor, Tensor]:
    """Augment and run the frozen backbone: features [passes x images, num_features] and targets."""
    config, model = classifier.config, classifier.model
    loader = loaders.train_dataloader()
    bar = tqdm(total=config.probe_epochs * len(loader), desc="frozen features", unit=" batches", leave=False)
    features, targets = [], []
    model.eval()
    fast = precision_of(config) == "bf16-mixed"
    for epoch in range(config.probe_epochs):
        loader.sampler.set_epoch(PROBE_EPOCH + epoch)  # type: ignore[attr-defined]
        for step, (layers, target, *_) in enumerate(loader):
            draw = Draw(seed=config.seed, epoch=PROBE_EPOCH + epoch, step=step)
            seen = classifier.look(layers, config.image_size, draw)
            with torch.inference_mode(), torch.autocast(seen.device.type, torch.bfloat16, enabled=fast):
                features.append(classifier.features(seen).float())
            targets.append(target)
            bar.update()
    bar.close()
    freeze(model, config)
    return torch.cat(features), torch.cat(targets)


def logistic_regression(features: Tensor, targets: Tensor, *, task: Task) -> tuple[Tensor, Tensor]:
    """Fit weight [num_labels, num_features] and bias [num_labels] by L-BFGS with a ridge, on standardised features."""
    mean, std = features.mean(0), features.std(0) + 1e-3
    inputs = ((features - mean) / std).clone()
    targets = targets.clone()
    weight = torch.zeros(targets.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight.T + bias
        if task == "multilabel":
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets) * targets.shape[1]
        else:
            loss = torch.nn.functional.cross_entropy(logits, targets)
        loss = loss + PENALTY * features.shape[1] * weight.square().mean() * targets.shape[1]
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / std
    return scaled, bias.detach() - scaled @ mean
