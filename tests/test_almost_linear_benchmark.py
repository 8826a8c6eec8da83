"""The gradient of a LoRA's factors is autograd's, errors rise with the entries, and the page has a row for every length."""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import almost_linear

from trimtab.core.seeds import Seeds
from trimtab.tensors.polynomial_attention import exact


def test_gradients_are_those_of_the_factors() -> None:
    head = almost_linear.Head(12, 4, 1.5, Seeds(0).at("head"))
    assert abs(float(head.given[0].abs().max()) - 1.5 / 2) < 1e-12
    leaves = [(left.clone().requires_grad_(), right.clone().requires_grad_()) for left, right in head.factors]
    # What is frozen is what the factors do not make up.
    scales = (0.5, 0.5, 1.0)
    rest = [
        one / scale - head.x @ (left @ right).mT
        for one, scale, (left, right) in zip(head.given, scales, head.factors, strict=True)
    ]
    q, k, v = (frozen + head.x @ (left @ right).mT for frozen, (left, right) in zip(rest, leaves, strict=True))
    (torch.softmax(q @ k.mT / 4, 1) @ v).backward(head.upstream)
    wanted = torch.cat([one.grad.flatten() for pair in leaves for one in pair])
    torch.testing.assert_close(head.gradients(exact), wanted)


def test_errors_rise_where_entries_grow() -> None:
    line = almost_linear.measured(argparse.Namespace(one="64", size=4, seed=0, threads=torch.get_num_threads()))
    errors = [line["errors"][str(gamma)] for gamma in almost_linear.GAMMAS]
    assert errors[0] < 1e-6
    assert errors[:5] == sorted(errors[:5])
    assert errors[-1] > 1e-2
    assert min(line["seconds"].values()) > 0


def test_the_page_has_a_row_for_every_length() -> None:
    given = argparse.Namespace(most=512, seeds=2)
    found = [*almost_linear.jobs(given)]
    assert len({tuple(job.fields.values()) for job in found}) == len(found) == 2 * 2 * 2
    some = {
        "threads": 1,
        "errors": dict.fromkeys(map(str, almost_linear.GAMMAS), 0.25),
        "seconds": {"exact": 0.002, "polynomial": 0.001},
    }
    said = almost_linear.page([{**job.fields, **some} for job in found])
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith(("| 4", "| 8"))]
    assert [row[:4] for row in rows] == [["| 4", t, "210", "2"] for t in ("256", "512")] + [
        ["| 8", t, "495", "2"] for t in ("256", "512")
    ]
    assert rows[0][4:] == ["2.5e-01"] * 7 + ["1.0", "2.0 |"]
