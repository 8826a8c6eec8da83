"""torch's side of the comparison: the same models through transformers' `generate`. Also the judge of the others' logits.

int4 is what torch itself brings: `torch.ops.aten._weight_int4pack_mm_for_cpu`, groups of 64, no further package.
"""

import argparse
from importlib.metadata import version
from time import perf_counter

import numpy as np
import torch
from answering import Answer, resident, serve
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

GROUP_SIZE = 64


class Int4(nn.Module):
    """A linear layer without bias, rounded to 4 bits: w = (code - 8) * scale + middle."""

    def __init__(self, weight: Tensor):
        super().__init__()
        groups = weight.float().view(len(weight), -1, GROUP_SIZE)
        low, high = groups.amin(-1), groups.amax(-1)  # [out, groups]
        scale = ((high - low) / 15).clamp_min(1e-9)
        codes = ((groups - low[..., None]) / scale[..., None]).round_().clamp_(0, 15).to(torch.int32).view(weight.shape)
        self.codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.grid = torch.stack([scale.T, (low + 8 * scale).T], -1).bfloat16().contiguous()  # [groups, out, 2]

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.reshape(-1, x.shape[-1]), self.codes, GROUP_SIZE, self.grid)
        return y.view(*x.shape[:-1], -1)


class Clock(BaseStreamer):
    """When each token came; the prompt comes through the same door first."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def put(self, value: Tensor) -> None:
        self.ticks.append(perf_counter())

    def end(self) -> None:
        pass


class Torch:
    """One model; commands as `answering.serve` takes them."""

    def load(self, path: str, threads: int, kind: str) -> Answer:
        """kind: float32, bfloat16, int4; or judge: any folder of ours in float32, its packed matrices unpacked."""
        begun = perf_counter()
        torch.set_num_threads(threads)
        if kind == "judge":
            from trimtab.host.checkpoint import load

            self.model = load(path, dtype=torch.float32)[0]
        else:
            dtype = torch.float32 if kind == "float32" else torch.bfloat16
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).eval()
        if kind == "int4":
            _round(self.model)
        return {
            "seconds": perf_counter() - begun,
            "resident": resident(),
            "kernel": torch.backends.cpu.get_cpu_capability(),
            "bytes_per_token": _read_per_token(self.model),
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }

    def threads(self, count: int) -> Answer:
        torch.set_num_threads(count)
        return {}

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> Answer:
        begun = perf_counter()
        self.model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        return {"seconds": perf_counter() - begun}

    @torch.inference_mode()
    def decode(self, ids: list[int], new_tokens: int) -> Answer:
        prompt, clock = torch.tensor([ids]), Clock()
        length = {"min_new_tokens": new_tokens + 1, "max_new_tokens": new_tokens + 1}
        out = self.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, streamer=clock, **length
        )
        return {"seconds": clock.ticks[-1] - clock.ticks[1], "ids": out[0, len(ids) :].tolist()}

    @torch.inference_mode()
    def logits(self, ids: list[int], target: str) -> Answer:
        """[tokens, vocabulary] float32."""
        np.save(target, self.model(input_ids=torch.tensor([ids])).logits[0].float().numpy())
        return {}


def _round(model: nn.Module) -> None:
    for path, module in list(model.named_modules()):
        tied = path == "lm_head" and model.config.tie_word_embeddings
        if isinstance(module, nn.Linear) and not tied:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, Int4(module.weight.detach()))


def _read_per_token(model: nn.Module) -> int:
    """Bytes of weights that one token reads: all but an embedding that is only looked up."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    looked_up = 0 if getattr(head, "weight", None) is embedding else embedding.nbytes
    # An int4 layer's tensors are plain attributes: nobody trains or saves them.
    packed = sum(m.codes.nbytes + m.grid.nbytes for m in model.modules() if isinstance(m, Int4))
    return sum(p.nbytes for p in model.parameters()) + packed - looked_up


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    side = Torch()
    serve({name: getattr(side, name) for name in ("load", "threads", "prefill", "decode", "logits")})


if __name__ == "__main__":
    main()
