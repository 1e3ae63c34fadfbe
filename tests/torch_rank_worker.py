"""One of two ranks: what tests/test_torch_ranks.py looks at. Arguments: the rank, a folder, the names of parts.

The ranks meet in a file of the folder, on the CPU. Each part is saved as `<part>_<rank>.pt`.
"""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path

import torch
from torch import nn

RANKS = 2
ROWS = 4  # of a batch
FACTOR = 4  # batches in a pool


def text(n, length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (n, length), generator=generator)
    mask, labels = torch.ones_like(ids), ids.clone()
    for i in range(n):
        used = 3 + i % (length - 2)
        ids[i, used:], mask[i, used:], labels[i, used:] = 0, 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def numbers(n, length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, length, 6, generator=generator), torch.randn(n, length, 4, generator=generator)


class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.lora_B(self.lora_A(x))


def llama():
    """Adapters in the attention, all else frozen."""
    from torch_trainer import tiny_model

    model = tiny_model(dropout=0.0).requires_grad_(False)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, LoRA(getattr(layer.self_attn, name)))
    return model


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.LayerNorm(10), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 4))


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().flatten(1).sum(1)


def token_losses(model, batch):
    from pysubmod.torch import causal_lm_loss

    return causal_lm_loss(model, batch)


MODELS = {"llama": (llama, token_losses, text), "mlp": (mlp, squares, numbers)}


def batch_of(name, rank, n=6):
    """Other rows for each rank, and another length."""
    return MODELS[name][2](n, 7 + 3 * rank, 10 + rank)


def distributed(name):
    return nn.parallel.DistributedDataParallel(MODELS[name][0]())


def sharded(name):
    from torch.distributed.fsdp import fully_shard

    model = MODELS[name][0]()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
    for module in (*(model.model.layers if name == "llama" else [model[0], model[3]]), model):
        fully_shard(module, mesh=mesh)
    return model


WRAPPED = {"ddp": distributed, "fsdp2": sharded}


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def own_part(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def parameters_of(model):
    return [whole(parameter) for parameter in model.parameters()]


# ---- captures --------------------------------------------------------------------------------------------------------


def captures(rank, folder):
    """Per-sample gradients, and training with and without them."""
    from pysubmod.torch import per_sample_gradients

    found = {}
    for name, (_, loss, _) in MODELS.items():
        batch = batch_of(name, rank)
        for how, wrap in WRAPPED.items():
            model = wrap(name)
            options = ({}, {"check": True}, {"micro_batch": 4}, {"eval_mode": True})
            gradients = [per_sample_gradients(model, loss, batch, **given) for given in options]
            found[name, how] = list(gradients[0].shapes), [g.matrix(torch.float64) for g in gradients]
            found[name, how, "trained"] = [_train(name, wrap(name), rank, captured) for captured in (False, True)]
    found["late"] = [_accumulate(rank, captured) for captured in (False, True)]
    return found


def _train(name, model, rank, captured):
    """Three steps of two backward passes each; captures come before, between and after these."""
    from pysubmod.torch import per_sample_gradients

    _, loss, make = MODELS[name]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 1e-2)
    for step in range(3):
        for half in range(2):
            if captured:
                _unchanged(trainable, lambda: per_sample_gradients(model, loss, batch_of(name, rank)))
            _backward(loss, model, make(4, 6 + rank, 20 + 4 * step + 2 * half + rank))
        if captured:
            _unchanged(trainable, lambda: per_sample_gradients(model, loss, batch_of(name, rank)))
        optimizer.step()
        optimizer.zero_grad()
    return parameters_of(model)


def _unchanged(trainable, capture):
    before = [parameter.grad for parameter in trainable]
    copies = [None if grad is None else own_part(grad).clone() for grad in before]
    capture()
    for parameter, grad, copy in zip(trainable, before, copies, strict=True):
        assert parameter.grad is grad and (grad is None or torch.equal(own_part(grad), copy))


def _backward(loss, model, batch):
    losses = loss(model, batch)
    (losses[0] if isinstance(losses, tuple) else losses).sum().backward()


def _accumulate(rank, captured):
    """FSDP2 accumulates without communication, and a capture comes when the next pass is to communicate."""
    from pysubmod.torch import per_sample_gradients

    model = sharded("mlp")
    for last in (False, True):
        model.set_requires_gradient_sync(last)
        if captured:
            per_sample_gradients(model, squares, batch_of("mlp", rank))
        _backward(squares, model, numbers(4, 6, 10 * last + rank))
    return [whole(parameter.grad) for parameter in model.parameters()]


def selectors(rank, folder):
    """Selectors on a model in shards, and on a whole one; their optimizers have made a step."""
    from pysubmod.torch import BatchSelector, FilterThenWeight, PartitionSel

    found = {}
    for name, (_, loss, rows) in MODELS.items():
        for how, wrap in {"whole": lambda name: MODELS[name][0](), "fsdp2": sharded}.items():
            model = wrap(name)
            trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trainable, 1e-2)
            _backward(loss, model, rows(4, 6, 30))  # the same for all ranks
            optimizer.step()
            optimizer.zero_grad()
            given = {"ratio": 0.25, "validation": batch_of(name, rank, 8), "random_state": rank, "refresh": 2}
            kinds = [
                PartitionSel(loss, eta=0.1, **given),
                BatchSelector(loss, method="omp", **given),
                FilterThenWeight(loss, optimizer=optimizer, **given),
                FilterThenWeight(loss, optimizer=optimizer, momentum="corrected", at="target", **given),
            ]
            picked = [selector.select(model, batch_of(name, rank, 12)) for selector in kinds for _ in range(2)]
            found[name, how] = [(batch.indices.tolist(), batch.weights.tolist()) for batch in picked]
    return found


def uneven(rank, folder):
    """FSDP2, and one rank has more passes to make than the other."""
    from pysubmod.torch import per_sample_gradients

    model = sharded("mlp")
    try:
        per_sample_gradients(model, squares, batch_of("mlp", rank, 4 + 4 * rank), micro_batch=4)
    except ValueError as error:
        return str(error)
    return "no error"


# ---- trainers --------------------------------------------------------------------------------------------------------


def config(method="partition-sel", **changes):
    from torch_trainer import Rows

    from pysubmod.torch import SelectionConfig

    options = {"group_column": "domain", "validation": Rows(30, seed=1), "pool_factor": FACTOR}
    return SelectionConfig(method, **options | changes)


def trained(folder, selection=None, *, kind=None, checkpoint=None, rows=200, **changes):
    """A run of a trainer, and what there is to look at."""
    from torch_trainer import Collate, Rows, arguments, losses_of, tiny_model, watch
    from transformers import Trainer, TrainerCallback

    from pysubmod.torch import with_selection

    kind = kind or Trainer
    options = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "ddp_backend": "gloo"}
    given = {
        "model": tiny_model(0.0), "args": arguments(folder, **options | changes), "train_dataset": Rows(rows),
        "data_collator": Collate(),
    }  # fmt: skip
    trainer = kind(**given) if selection is None else with_selection(kind)(**given, selection=selection)
    batches, states, gradients = [], [], []
    original = trainer.get_batch_samples

    def get(*arguments):
        states.append(parameters_of(trainer.model))
        got = original(*arguments)
        batches.extend({key: value.clone() for key, value in batch.items()} for batch in got[0])
        return got

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.append([whole(parameter.grad) for parameter in model.parameters()])

    pools = [] if selection is None else watch(trainer)
    trainer.get_batch_samples = get
    trainer.add_callback(Gradients())
    trainer.train(resume_from_checkpoint=checkpoint)
    return {
        "losses": losses_of(trainer), "pools": [pool for pool, _ in pools], "batches": batches, "states": states,
        "gradients": gradients, "parameters": parameters_of(trainer.model),
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "sharded": all(hasattr(parameter, "full_tensor") for parameter in trainer.model.parameters()),
    }  # fmt: skip


def trainers(rank, folder):
    twice = {"gradient_accumulation_steps": 2, "max_steps": 3}
    saving = {"max_steps": 9, "save_strategy": "steps", "save_steps": 3}
    one = config("filter-then-weight", pool_factor=1, use_weights=False)
    stale = config("filter-then-weight", refresh_every=2, target="balanced", layers="*proj")
    return {
        "large batches": trained(folder / "a", per_device_train_batch_size=ROWS * FACTOR, max_steps=4),
        "partition-sel": trained(folder / "b", config(), max_steps=4),
        "accumulated": trained(folder / "c", config(), **twice),
        "weighted": trained(folder / "d", config("filter-then-weight", layers="*proj"), **twice),
        "alone": trained(folder / "e", rows=50, **twice),
        "pools of one batch": trained(folder / "e", one, rows=50, **twice),
        "not interrupted": trained(folder / "f", stale, **saving),
        "resumed": trained(folder / "g", stale, checkpoint=str(folder / "f" / "checkpoint-3"), **saving),
    }


def sharding_trainers(rank, folder):
    """A trainer on FSDP2. accelerate passes FSDP over on a CPU, where torch has it: it is told afterwards."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from transformers import Trainer

    class Sharding(Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            state = self.accelerator.state
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="SHARDED_STATE_DICT",
                transformer_cls_names_to_wrap=["LlamaDecoderLayer"], reshard_after_forward=True,
            )  # fmt: skip
            self.is_fsdp_enabled = True

    options = {"max_steps": 4, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    found = {}
    for kind in (Trainer, Sharding):  # in this order: what accelerate is told, it remembers
        for method in ("partition-sel", "filter-then-weight"):
            chosen, place = config(method, refresh_every=3), folder / kind.__name__ / method
            found[method, kind.__name__] = trained(place, chosen, kind=kind, **options)
    kept = str(folder / "Sharding" / "filter-then-weight" / "checkpoint-2")
    found["resumed"] = trained(folder / "h", chosen, kind=Sharding, checkpoint=kept, **options)
    return found


PARTS = {part.__name__: part for part in (captures, trainers, selectors, sharding_trainers, uneven)}


def main():
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # for accelerate, which does not use them
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    for name in sys.argv[3:]:
        torch.save(PARTS[name](rank, folder), folder / f"{name}_{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
