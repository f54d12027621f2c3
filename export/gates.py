"""How close a variant must be to its reference before it may be published; every limit can be set and is recorded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from export.parity import Parity

Variant = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one variant."""

    max_score_shift: float
    """Largest difference of any score of any view, at any batch size."""
    min_agreement: float
    """Share of test images with the same decision as the reference: under the policy, at every mid-range threshold, at any batch size."""
    max_ap_drop: float
    """Largest fall of a label's average precision below the reference's."""

    def failures(self, parity: Parity) -> tuple[str, ...]:
        """One sentence for each figure that misses its limit; empty when the variant passes."""
        found = []
        shift = max([parity.shift.max, *parity.batch_shift.values()])
        if not shift <= self.max_score_shift:
            found.append(f"score shift {shift:.3g} is above {self.max_score_shift:g}")
        for where, share in parity.agreement.items():
            if not share >= self.min_agreement:
                found.append(f"decision agreement {where} {share:.2%} is below {self.min_agreement:.2%}")
        for batch, share in parity.batch_agreement.items():
            if not share >= self.min_agreement:
                found.append(
                    f"decisions kept at batch {batch} {share:.2%} are below {self.min_agreement:.2%}"
                )
        for label, drop in parity.ap_drop.items():
            if not drop <= self.max_ap_drop:
                found.append(
                    f"average precision of {label!r} falls by {drop:.4f}, more than {self.max_ap_drop:g}"
                )
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits of every variant."""

    fp32: Limits = field(
        default_factory=lambda: Limits(max_score_shift=1e-3, min_agreement=0.999, max_ap_drop=0.001)
    )
    fp16: Limits = field(
        default_factory=lambda: Limits(max_score_shift=0.02, min_agreement=0.995, max_ap_drop=0.005)
    )
    int8: Limits = field(
        default_factory=lambda: Limits(max_score_shift=0.5, min_agreement=0.99, max_ap_drop=0.02)
    )

    def of(self, variant: Variant) -> Limits:
        """Limits of one variant."""
        limits: Limits = getattr(self, variant)
        return limits

    def to_dict(self) -> dict[str, dict[str, float]]:
        """For the record."""
        return dataclasses.asdict(self)
