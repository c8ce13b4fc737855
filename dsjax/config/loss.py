"""The weights of the losses and the speed of the balance rule (V3 report sec. 2.1.2, 2.2, 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

from dsjax.config.fields import between, well_typed


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses beside the next-token loss, and the speed of the selection bias."""

    balance: float = 1e-4
    """alpha of V3's sequence-wise balance loss."""
    expert_balance: float = 0.0
    """alpha_1 of V2's expert-level loss (V2 0.003, V2-Lite 0.001)."""
    device_balance: float = 0.0
    """alpha_2 of V2's device-level loss (V2 0.05); a device is an expert group."""
    communication_balance: float = 0.0
    """alpha_3 of V2's communication loss (V2 0.02)."""
    mtp_weight: float = 0.3
    """lambda over the first part of training."""
    mtp_weight_late: float = 0.1
    """lambda over the rest."""
    mtp_late_from: float = 10.0 / 14.8
    """Fraction of the run after which lambda is `mtp_weight_late`."""
    bias_speed: float = 0.001
    """gamma: what an overloaded expert's bias loses a step."""
    bias_until: float = 14.3 / 14.8
    """Fraction of the run after which gamma is 0."""

    def __post_init__(self) -> None:
        """Refuse negative weights and fractions outside [0, 1]."""
        well_typed(self)
        for name in ("balance", "expert_balance", "device_balance", "communication_balance",
                     "mtp_weight", "mtp_weight_late", "bias_speed"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"LossConfig.{name}={getattr(self, name)} is negative; use 0 for off"
                )
            between(self, name, 0, 1e6, "the reports stay below 1")
        between(self, "bias_speed", 0, 1, "a step of 1 is as large as any affinity; V3 uses 0.001")
        for name in ("mtp_late_from", "bias_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"LossConfig.{name}={getattr(self, name)} is a fraction of the run; "
                    "use a number from 0 to 1"
                )
