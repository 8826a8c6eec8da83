"""How much of what a matrix says would be missed: scores of its weights and of its input channels, larger = keep.

Structured methods sum or average them over the rows and columns of a unit; which weights belong to a unit is not known here.
All in float64, because units are ranked by sums over very many weights.
"""

import torch
from torch import Tensor


def wanda(weight: Tensor, power: Tensor) -> Tensor:
    """[out, in]: |w| times the root mean square of its input. weight: [out, in]; power: [in] mean of x^2."""
    return weight.double().abs() * power.double().sqrt()


def fluctuation(weight: Tensor, variance: Tensor) -> Tensor:
    """[in]: the variance that an input channel carries into the output. weight: [out, in]; variance: [in]."""
    return variance.double() * weight.double().square().sum(0)


def taylor(weight: Tensor, gradient: Tensor | None, fisher: Tensor | None) -> Tensor:
    """[out, in]: the loss that is expected from setting each weight to zero, as a size; all arguments [out, in].

    |w g| from the gradient alone, w^2 F / 2 from the Fisher diagonal alone, |w g - w^2 F / 2| from both.
    """
    linear = torch.zeros(()) if gradient is None else weight.double() * gradient.double()
    square = torch.zeros(()) if fisher is None else weight.double().square() * fisher.double() / 2
    return (linear - square).abs()


def standard(scores: Tensor) -> Tensor:
    """The same with mean 0 and standard deviation 1; all zero where they do not differ."""
    spread = scores.std(correction=0)
    return (scores - scores.mean()) / spread if float(spread) > 0 else scores * 0
