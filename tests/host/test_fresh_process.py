"""What was saved opens in a clean process by plain transformers, before or after `import trimtab`, or without it at all.

Starting transformers takes seconds, so all processes of this file run side by side, once.
"""

import subprocess
import sys

import pytest
import torch
from host_models import MODELS, logits, plain_but_changed, tokens
from safetensors.torch import load_file, save_file

from trimtab.host import checkpoint

OPEN = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folder, names = Path(sys.argv[1]), sys.argv[3:]
tokens = load_file(folder / "tokens.safetensors")["tokens"]
seen = {}
with torch.no_grad():
    for name in names:
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        seen[name] = model(tokens).logits
        seen[name + ".generated"] = model.generate(tokens[:1], max_new_tokens=4, do_sample=False)
save_file(seen, folder / sys.argv[2])
"""
SCRIPTS = {
    "before": ("import trimtab\nimport transformers.quantizers.auto\n" + OPEN, list(MODELS)),
    "after": ("import transformers.modeling_utils\nimport trimtab\n" + OPEN, ["llama"]),
    "without": ("import sys\nsys.modules['trimtab'] = None\n" + OPEN, ["plain"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, make in {**MODELS, "plain": plain_but_changed}.items():
        checkpoint.save(make(), None, folder / name)
    save_file({"tokens": tokens()}, folder / "tokens.safetensors")
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", script, str(folder), f"{name}.safetensors", *models], stderr=subprocess.PIPE, text=True
        )
        for name, (script, models) in SCRIPTS.items()
    }
    for name, process in running.items():
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"{name}: {errors}"
    return folder


@pytest.mark.parametrize(("process", "name"), [("before", name) for name in MODELS] + [("after", "llama"), ("without", "plain")])
def test_a_fresh_process_gives_the_same_bits(folder, process, name):
    model = {**MODELS, "plain": plain_but_changed}[name]()
    seen = load_file(folder / f"{process}.safetensors")
    assert torch.equal(seen[name], logits(model))
    assert torch.equal(seen[name + ".generated"], model.generate(tokens()[:1], max_new_tokens=4, do_sample=False))


def test_import_trimtab_imports_nothing_heavy():
    script = "import trimtab, sys; print(sorted({'torch', 'transformers', 'numpy', 'yaml'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0)
