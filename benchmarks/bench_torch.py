"""What selection costs beside training: scoring a pool of 64 against training on it, the solver against a step, memory.

    OMP_NUM_THREADS=1 python benchmarks/bench_torch.py [--rounds 5] [--tokens 96] [--layers 30] [--dtype bfloat16]

A Llama of the shape of SmolLM2-135M (30 layers, width 576, vocabulary 49,152) with random weights, on which costs do
not depend; LoRA of rank 8 on q_proj and v_proj by peft, float32 beside a base of `--dtype`; eager attention, since
torch's fused one has a slow backward pass in bfloat16 on CPUs. In turn each round:

* training: forward and backward of the whole pool, the gradients of LoRA's parameters as a trainer takes them;
* scoring: `per_sample_gradients` of the pool, K and the products with a target;
* a step of each selector: pool of 64, 16 picked, 4 validation rows, training on the picks; the solver's share of it.

CPU seconds (all threads), which neighbours disturb less; medians, and ratios within a round. Peak memory is that of a
process of its own for training and for scoring.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import machine

POOL, PICKED, ANCHORS, DOMAINS = 64, 16, 4, 8


def make(layers, dtype):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    base = LlamaForCausalLM(shape).to(getattr(torch, dtype))
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], layers_to_transform=list(range(30 - layers, 30)),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # as after some steps: zeros would leave half of the gradients zero
            torch.nn.init.normal_(parameter, std=0.01)
    return model


def batch_of(n, tokens, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(49152, (n, tokens), generator=generator)
    labels = ids.clone()
    labels[:, : tokens // 2] = -100  # a prompt as long as its response
    return {"input_ids": ids, "labels": labels, "domain": torch.arange(n) % DOMAINS}


def without_domain(batch):
    return {key: value for key, value in batch.items() if key != "domain"}


def train(model, batch):
    from pysubmod.torch import causal_lm_loss

    losses, mask = causal_lm_loss(model, without_domain(batch))
    (losses.sum() / mask.sum()).backward()
    model.zero_grad()


def score(model, batch, target):
    from pysubmod.torch import causal_lm_loss, gradient_matching, per_sample_gradients

    return gradient_matching(per_sample_gradients(model, causal_lm_loss, without_domain(batch)), target)


def target_of(model, tokens):
    from pysubmod.torch import causal_lm_loss, per_sample_gradients

    anchors = per_sample_gradients(model, causal_lm_loss, without_domain(batch_of(ANCHORS, tokens, 1)))
    return anchors.mean()


def selectors(model, tokens):
    import torch

    from pysubmod.torch import BatchSelector, FilterThenWeight, Greats, PartitionSel, causal_lm_loss

    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    options = {"ratio": PICKED / POOL, "groups": "domain", "validation": batch_of(256, tokens, 2), "random_state": 0}
    return {
        "PartitionSel": PartitionSel(causal_lm_loss, eta=1e-3, **options),
        "FilterThenWeight": FilterThenWeight(causal_lm_loss, optimizer=adam, **options),
        "normalized OMP": BatchSelector(causal_lm_loss, **options),
        "GREATS": Greats(causal_lm_loss, eta=1e-3, **options),
    }


def timed(function, *args):
    started = time.process_time()
    result = function(*args)
    return time.process_time() - started, result


def memory_of(what, args):
    """Peak resident memory of a process that does one thing, and before it, in MB."""
    command = [sys.executable, __file__, "--only", what, "--tokens", str(args.tokens), "--layers", str(args.layers)]
    run = subprocess.run([*command, "--dtype", args.dtype], capture_output=True, text=True, check=True)
    before, peak = run.stdout.split()[-2:]
    return float(before), float(peak)


def only(what, args):
    model, pool = make(args.layers, args.dtype), batch_of(POOL, args.tokens, 0)
    target = target_of(model, args.tokens)
    before = machine.status_kb("VmRSS")
    train(model, pool) if what == "train" else score(model, pool, target)
    print(before / 1024, machine.status_kb("VmHWM") / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--layers", type=int, default=30, help="the last ones that have LoRA")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--only", choices=("train", "score"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        only(args.only, args)
        return

    import torch

    model, pool = make(args.layers, args.dtype), batch_of(POOL, args.tokens, 0)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    limits = machine.limits()
    print(f"{machine.name()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"now: {limits['gemv_GB_per_s']:.1f} GB/s (gemv), {limits['sgemm_GFLOP_per_s']:.0f} GFLOP/s (sgemm)")
    print(
        f"pool {POOL} x {args.tokens} tokens, {PICKED} picked; LoRA on {args.layers} layers, d = {size:,}; {args.dtype}"
    )

    target, kinds = target_of(model, args.tokens), selectors(model, args.tokens)
    trained, scored, steps = [], [], {name: [] for name in kinds}
    for round_ in range(args.rounds + 1):
        seconds = timed(train, model, pool)[0], timed(score, model, pool, target)[0]
        rows = {}
        for name, selector in kinds.items():
            whole, picked = timed(selector.select, model, pool)
            rows[name] = (whole + timed(train, model, picked.batch)[0], picked.diagnostics)
        if round_ == 0:  # the first of everything is slower
            continue
        trained.append(seconds[0])
        scored.append(seconds[1])
        for name, row in rows.items():
            steps[name].append(row)

    ratios = sorted(b / a for a, b in zip(trained, scored, strict=True))
    median = statistics.median
    print(f"\ntraining on the pool {median(trained):.2f} s, scoring it {median(scored):.2f} s:", end=" ")
    print(f"{median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print("\n| selector | step, s | gradients, K, c and target | solver, ms | solver / step |")
    print("|---|---|---|---|---|")
    for name, rows in steps.items():
        whole = median([row[0] for row in rows])
        capture = median([row[1]["seconds_capture"] for row in rows])
        solver = median([row[1]["seconds_select"] for row in rows])
        print(f"| {name} | {whole:.2f} | {capture:.2f} | {1000 * solver:.2f} | {100 * solver / whole:.3f} % |")
    print("\n| peak memory, MB | before | at most | added |\n|---|---|---|---|")
    for what, title in (("train", "training on the pool"), ("score", "scoring the pool")):
        before, peak = memory_of(what, args)
        print(f"| {title} | {before:.0f} | {peak:.0f} | {peak - before:.0f} |")


if __name__ == "__main__":
    main()
