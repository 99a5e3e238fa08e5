"""The learner: the encoder, the optimiser and everything else that a training step changes, and the step itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from simtrail.augment.views import LocalViews, TwoViews
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder
from simtrail.model.local import patch_contrast
from simtrail.model.objectives import OBJECTIVES, Part, contrastive_top1, terms
from simtrail.params import Pretrain
from simtrail.training.distributed import rank, synchronised, world
from simtrail.training.gradient import backward
from simtrail.training.memory import batch_too_large, is_out_of_memory
from simtrail.training.optimisers import make_optimiser

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Learner:
    """Trains an encoder (on its device, with its projection head) one batch at a time.

    If the loss has a local term, the `views` must have coordinates.
    """

    def __init__(self, encoder: Encoder, views: TwoViews, params: Pretrain):
        self.encoder, self.views, self.params = encoder, views, params
        self._show_local(encoder.config.view_side)
        self.device = encoder.device
        if params.gradient_checkpointing:
            try:
                for branch in encoder.branches.values():
                    branch.net.set_grad_checkpointing(True)
            except (AssertionError, AttributeError):
                model = params.encoder.model
                raise InputError(f"pretrain.gradient_checkpointing: not offered by {model}; set it to false") from None
        if world() > 1 and params.sync_batch_norm:
            synchronised(encoder)
        self.network: nn.Module = _Projections(encoder)
        if params.compile:
            self.network.compile(dynamic=False)  # a program per shape: inductor fails on some shapes left open
        if world() > 1:
            self.network = DistributedDataParallel(self.network)
        self.optimiser = make_optimiser([encoder], params)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=params.precision == "fp16")
        self.average = (
            AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(params.ema), use_buffers=True)
            if params.ema
            else None
        )
        self.autocast = torch.autocast(self.device.type, LOW[params.precision], enabled=params.precision != "fp32")
        scale: dict[str, Any] = {"temperature": params.temperature, "normalise": params.normalise}
        self.part = Part(rank(), world(), dist.all_reduce) if world() > 1 else None  # of the loss
        self.objective = partial(
            terms,
            widths=encoder.projection_widths,
            weights=encoder.config.terms,
            objective=partial(OBJECTIVES[params.objective], part=self.part, **scale),
            teacher_weight=params.teacher.weight,
            local=partial(patch_contrast, shape=encoder.local_shape, decoupled=params.objective == "dcl", **scale),
        )

    def show(self, side: int) -> None:
        """From now on, views have this side."""
        if side != self.views.size:
            self.views = TwoViews(self.params.augment, self.views.recipe, side, coordinates=self.views.coordinates)
            self._show_local(side)

    def _show_local(self, side: int) -> None:
        count = self.params.local_views
        self.local_views = LocalViews(self.params.augment, self.views.recipe, side, count) if count else None

    @property
    def kept(self) -> Encoder:
        """The encoder that is validated and kept: the moving average if there is one."""
        return self.average.module if self.average else self.encoder  # type: ignore[return-value]

    def step(
        self,
        batch: torch.Tensor,
        rate: float,
        *seed: int,
        groups: torch.Tensor | None = None,
        teacher: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Trains on a batch; returns the loss of the whole batch, and further measures of it by name.

        `batch` is the part of this process; `groups` and `teacher` are those of the whole batch (see `terms`). The
        measures are contrastive_top1, gradient_norm (before clipping) and, if the loss has several terms, each of them:
        loss_fused, loss_intra, loss_cross, loss_teacher, loss_local.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, terms_of_loss, projections = self._gradient(batch, seed, groups, teacher)
        self.scaler.unscale_(self.optimiser)
        norm = self._clipped_norm()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average:
            self.average.update_parameters(self.encoder)
        term_losses = {f"loss_{name}": value for name, value in terms_of_loss.items() if len(terms_of_loss) > 1}
        two_views = self.encoder.joined(projections)[: 2 * world() * len(batch)]
        top1 = contrastive_top1(two_views, groups=groups, part=self.part)
        return loss, {"contrastive_top1": top1, "gradient_norm": norm, **term_losses}

    def _clipped_norm(self) -> torch.Tensor:
        """The norm of the gradient before it is clipped; 0 where it is not finite: then fp16 skips the step."""
        weights = list(self.encoder.parameters())
        if self.params.clip:
            norm = clip_grad_norm_(weights, self.params.clip)
        else:
            norm = get_total_norm([w.grad for w in weights if w.grad is not None])
        return torch.where(norm.isfinite(), norm, 0.0)

    def _gradient(
        self,
        batch: torch.Tensor,
        seed: tuple[int, ...],
        groups: torch.Tensor | None = None,
        teacher: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        whole = self.params.batch_size

        def draw(images: torch.Tensor, start: int) -> list[torch.Tensor]:
            kinds: list[TwoViews | LocalViews] = [self.views, *([self.local_views] if self.local_views else [])]
            return [views(images, *seed, start=rank() * len(batch) + start, total=whole) for views in kinds]

        def attempt(images: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
            objective = self.objective
            if groups is not None:
                objective = partial(objective, groups=groups[: images * world()])
            if teacher is not None:
                objective = partial(objective, teacher=teacher[: images * world()])
            if self.local_views is not None:
                objective = partial(objective, images=images * world())
            return backward(self.network, batch[:images], draw, objective, self.scaler, self.autocast, at_once)

        at_once = min(self.params.micro_batch_size or len(batch), len(batch))
        try:
            return attempt(len(batch))
        except RuntimeError as error:
            if world() > 1 or not is_out_of_memory(error):
                raise
        raise batch_too_large(whole, at_once, attempt)  # outside the handler, which keeps the memory of the failed step

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {"encoder": self.encoder, "optimiser": self.optimiser, "scaler": self.scaler}
        return parts | ({"average": self.average} if self.average else {})


class _Projections(nn.Module):
    """Maps views to projections, as one module that can be compiled and distributed."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        parts = [self.encoder.projections(views_of_one_size) for views_of_one_size in views]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
