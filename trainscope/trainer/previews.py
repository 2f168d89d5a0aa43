"""Sample images while training: the same prompts and seed each time, from the raw weights and from their average."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import Image

from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.data.dataset import preview_image
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.sample import image_digest, image_distance, sample_images
from trainscope.trainer.session import Session


@dataclass
class Previews:
    """Remembers the last image of each prompt and weights, to tell how far the new one is from it."""

    session: Session
    run: RunDir
    recorder: Recorder
    _last: dict[tuple[str, str], Image.Image] = field(default_factory=dict)

    def remember(self, step: int) -> None:
        """Take up the last images of earlier segments, up to `step`: the next ones are compared with them."""
        rows = read_run(self.run.path).datasets["samples"].to_table(columns=["step", "path", "prompt", "weights"])
        for row in sorted(rows.to_pylist(), key=lambda row: row["step"]):
            path = self.run.path / row["path"]
            if row["step"] <= step and path.exists():
                with Image.open(path) as picture:
                    self._last[(row["prompt"], row["weights"])] = picture.convert("RGB")

    def make(self) -> None:
        """Generate and record the images of the current step."""
        for which in self.session.weight_sets:
            with self.session.weights(which):
                self._make(which, self.session.point(which))
        self.recorder.log.event("sample", prompts=len(self.prompts))

    @property
    def prompts(self) -> list[str]:
        """`sample.prompts`, else the first two captions that differ."""
        captions = (sample.caption for sample in self.session.data.samples if sample.caption)
        return list(self.session.config.sample.prompts) or list(dict.fromkeys(captions))[:2] or [""]

    def _make(self, which: str, mode: str | None) -> None:
        session, section = self.session, self.session.config.sample
        resolution = session.config.data.resolution
        width, height = section.width or resolution, section.height or resolution
        image, mask = preview_image(session.data, width, height) if session.components.inpainting else (None, None)
        images = sample_images(
            session.components,
            session.unet,
            prompts=self.prompts,
            negative_prompt=section.negative_prompt,
            sampler=section.sampler,
            steps=section.steps,
            guidance=section.guidance,
            seed=section.seed,
            width=width,
            height=height,
            encode=partial(session.data.embeddings.encode, session.components),
            autocast_dtype=None if session.compute_dtype == torch.float32 else session.compute_dtype,
            inpaint_image=image,
            inpaint_mask=mask,
        )
        if not session.processes.is_main:
            return
        for number, (prompt, picture) in enumerate(zip(self.prompts, images, strict=True)):
            path = f"samples/step-{session.step:08d}-{number}-{which}.png"
            picture.save(self.run.path / path)
            before = self._last.get((prompt, which))
            self.recorder.log.add_row(
                "samples",
                step=session.step,
                path=path,
                prompt=prompt,
                weights=which,
                mode=mode,
                seed=section.seed,
                digest=image_digest(picture),
                distance=image_distance(before, picture) if before else None,
            )
            self._last[(prompt, which)] = picture
