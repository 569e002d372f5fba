"""A model over many ranks: FSDP2 for all of it, and experts that ranks share (expert parallel).

Every rank computes other sequences. The ranks form a table, R = copies x experts: those of a row
share the experts, each with its part of them whole; those of a column hold the same experts and
share each one's rows. All other parameters are shared by all ranks (PyTorch's `fully_shard`).

Shape letters: E experts, R ranks.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from model_code.common.architecture import Architecture
from model_code.moe.train.experts import GroupedExperts, mixtures
from model_code.moe.train.language_model import LanguageModel
from model_code.moe.train.ranks import Ranks
from model_code.moe.train.recipe import Recipe, TrainingError

_ROUTER = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)


def check_ranks(recipe: Recipe, ranks: int) -> int:
    """Refuse ranks that a recipe cannot be divided among; return the micro-batches of a step."""
    training, architecture = recipe.training, recipe.architecture
    shared = training.expert_parallel
    counts = [part.experts for part in _mixtures_of(architecture)] or [1]
    common = math.gcd(ranks, *counts)
    if common % shared:
        allowed = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise TrainingError(
            f"{recipe.source}: training.expert_parallel is {shared}; allowed are divisors of the "
            f"{ranks} ranks and of the {min(counts)} experts: {', '.join(allowed)}"
        )
    copies = ranks // shared
    for part in _mixtures_of(architecture):
        if architecture.hidden % copies or 2 * part.width % copies:
            raise TrainingError(
                f"{recipe.source}: {ranks} ranks with training.expert_parallel {shared} cut each "
                f"expert's rows into {copies}, which must divide hidden_size "
                f"{architecture.hidden} and twice its width {part.width}; raise expert_parallel"
            )
    if training.batch % (ranks * training.micro_batch):
        raise TrainingError(
            f"{recipe.source}: training.batch is {training.batch}; {ranks} ranks of micro_batch "
            f"{training.micro_batch} take multiples of {ranks * training.micro_batch}"
        )
    return training.batch // (ranks * training.micro_batch)


def _mixtures_of(architecture: Architecture) -> list:
    parts = {layer.feed_forward for layer in architecture.layers}
    return [part for part in parts if part.experts]


def shard(model: LanguageModel, recipe: Recipe, ranks: int, device: str) -> None:
    """Leave to this rank its parts of a model on the meta device."""
    training = recipe.training
    table = init_device_mesh(
        device, (ranks // training.expert_parallel, training.expert_parallel),
        mesh_dim_names=("copies", "experts"),
    )  # fmt: skip
    everyone = init_device_mesh(device, (ranks,), mesh_dim_names=("ranks",))
    policy = MixedPrecisionPolicy(
        param_dtype=getattr(torch, training.dtype), reduce_dtype=torch.float32
    )
    for mixture in mixtures(model):
        _share_experts(mixture.experts, table)
        fully_shard(
            mixture.experts, mesh=table["copies"], mp_policy=policy,
            shard_placement_fn=lambda _: Shard(1),
        )  # fmt: skip
        # FSDP would divide by the copies only; an expert's gradient has come from all ranks.
        _as_fsdp(mixture.experts).set_gradient_divide_factor(float(ranks))
        # gloo cannot multiply while it adds up, which is how FSDP would divide by that.
        _as_fsdp(mixture.experts).set_force_sum_reduction_for_comms(device == "cpu")
        fully_shard(mixture.router, mesh=everyone, mp_policy=_ROUTER)
    for block in model.decoder.layers:
        fully_shard(block, mesh=everyone, mp_policy=policy)
    fully_shard(model, mesh=everyone, mp_policy=policy)


def recompute_layers(model: LanguageModel) -> None:
    """Have each layer computed again on the way back, in place of keeping what it made."""
    for index, block in enumerate(model.decoder.layers):
        model.decoder.layers[index] = checkpoint_wrapper(block)


def _share_experts(experts: GroupedExperts, table: DeviceMesh) -> None:
    mesh = table["experts"]
    experts.group = mesh.get_group() if mesh.size() > 1 else None
    for name, parameter in list(experts.named_parameters(recurse=False)):
        part = parameter.new_empty(len(parameter) // mesh.size(), *parameter.shape[1:])
        whole = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
        experts.register_parameter(name, nn.Parameter(whole))


def _as_fsdp(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule)  # noqa: S101
    return module


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor; all of a plain one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip(parameters: list[nn.Parameter], largest: float, ranks: Ranks) -> float:
    """Scale all gradients down to a norm of `largest` at most; return the norm that they had.

    Every parameter is shared by all ranks, so the squares of the parts add up to the whole's.
    `torch.nn.utils.clip_grad_norm_` does not take parameters of two meshes.
    """
    parts = [local(each.grad) for each in parameters if each.grad is not None]
    squares = ranks.add(torch.stack([part.double().square().sum() for part in parts]).sum())
    norm = math.sqrt(squares.item())
    if norm > largest:
        torch._foreach_mul_(parts, largest / norm)
    return norm
