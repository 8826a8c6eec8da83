"""What a type checker sees of `import trimtab as tt`. Checked by mypy and never run; a wrong type in it has to be an error."""

from pathlib import Path
from typing import assert_type

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import trimtab as tt
from trimtab.core.report import Measurement
from trimtab.engine.plan import Plan
from trimtab.host.compress import Compressed
from trimtab.measure.compare import Comparison
from trimtab.methods.quantize.gptq import Gptq

assert_type(tt.methods.Gptq(bits=3, clip=True), Gptq)
assert_type(tt.plan("model", "gptq(bits=3)"), Plan)
assert_type(tt.compress("model", tt.methods.Gptq(bits=3), out="smaller"), Compressed)
assert_type(tt.compress(Path("model"), [tt.methods.Wanda(), tt.Step(tt.methods.Gptq())]).folder, Path | None)
assert_type(tt.load("model"), tuple[PreTrainedModel, PreTrainedTokenizerBase | None])
assert_type(tt.measure("model"), list[Measurement])
assert_type(tt.compare("model", "smaller", tasks=("sciq",)), Comparison)
assert_type(tt.Recipe.of("gptq(bits=3)"), tt.Recipe)

tt.methods.Gptq(bit=3)  # type: ignore[call-arg]
tt.methods.Gptq(bits="3")  # type: ignore[arg-type]
tt.methods.Gpqt  # type: ignore[attr-defined]  # noqa: B018
tt.measure(3)  # type: ignore[arg-type]
tt.compare("model", "smaller", tasks=3)  # type: ignore[arg-type]
