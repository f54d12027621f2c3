"""The servers that people run today, as small programs: `python -m benchmarks.peers tutorial --port 9000 --network runs/...`.

`tutorial`: FastAPI with PyTorch inside the async handler, as most tutorials have it. `simple`: FastAPI with ONNX Runtime in a thread
pool of one worker a core, one compute thread each. They take POST /predict with a JPEG, or with raw pixels of the model's size, decode with
plain Pillow and answer JSON with scores and decision. `benchmarks.peer_litserve` is the third.
"""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
import uvicorn
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from PIL import Image

from benchmarks.corpus import LABELS
from benchmarks.environment import num_cores
from benchmarks.in_process import open_session
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT, ImageSpec

SIZE = 224
THRESHOLD = 0.5
Kind = Literal["tutorial", "simple"]


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Serve a network in one of the ways people do."""

    kind: tyro.conf.Positional[Kind]
    port: int
    backbone: str = "resnet50"
    """For `tutorial`, which runs PyTorch."""
    model: Path = Path("model.onnx")
    """ONNX file, for the others."""


def to_pixels(body: bytes) -> NDArray[np.uint8]:
    """JPEG or raw pixels -> uint8 [1, SIZE, SIZE, 3]; decoded in full and resized, as tutorials do."""
    if len(body) == SIZE * SIZE * 3:
        return np.frombuffer(body, dtype=np.uint8).reshape(1, SIZE, SIZE, 3)
    with Image.open(io.BytesIO(body)) as image:
        picture = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(picture)[None]


def to_answer(scores: NDArray[np.float32]) -> dict[str, Any]:
    """Scores of one image -> what is sent back."""
    named = dict(zip(LABELS, map(float, scores), strict=True))
    return {"scores": named, "decision": "review" if max(named.values()) >= THRESHOLD else "allow"}


def tutorial_app(backbone: str) -> Any:
    """FastAPI + PyTorch, inference inside the async handler: nothing else happens while a picture is looked at."""
    import torch  # noqa: PLC0415  only this peer pays for it

    from benchmarks.networks import build_model  # noqa: PLC0415

    model = build_model(backbone, ImageSpec(height=SIZE, width=SIZE))
    app = FastAPI()

    async def predict(request: Request) -> dict[str, Any]:
        pixels = to_pixels(await request.body())
        with torch.inference_mode():
            scores = model(torch.from_numpy(pixels.copy())).numpy()
        return to_answer(scores[0])

    app.post("/predict")(predict)
    return app


def simple_app(model: Path) -> Any:
    """FastAPI + ONNX Runtime, one worker thread a core, each with one compute thread."""
    session = open_session(model, 1)
    pool = ThreadPoolExecutor(num_cores())
    app = FastAPI()

    def judge(body: bytes) -> dict[str, Any]:
        return to_answer(session.run([SCORES_OUTPUT], {IMAGE_INPUT: to_pixels(body)})[0][0])

    async def predict(request: Request) -> dict[str, Any]:
        body = await request.body()
        return await asyncio.get_running_loop().run_in_executor(pool, judge, body)

    app.post("/predict")(predict)
    return app


def main(config: PeerConfig) -> None:
    """Serve until killed."""
    app = tutorial_app(config.backbone) if config.kind == "tutorial" else simple_app(config.model)
    uvicorn.run(app, host="127.0.0.1", port=config.port, log_level="warning")


if __name__ == "__main__":
    main(tyro.cli(PeerConfig))
