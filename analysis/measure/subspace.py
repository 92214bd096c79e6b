"""How much two subspaces have in common. Vectors are rows: U (r, d) holds r orthonormal directions of R^d."""

import torch
from jaxtyping import Float
from torch import Tensor


def phi(U: Float[Tensor, "r1 d"], V: Float[Tensor, "r2 d"]) -> Float[Tensor, "r1 r2"]:
    """The similarity of the first i directions of U with the first j of V, for every i and j: [i - 1, j - 1] holds

        phi(i, j) = ||U_i V_j^T||_F^2 / min(i, j)    in [0, 1]:  0 orthogonal, 1 the smaller within the larger.

    Source: arXiv:2106.09685 section 7.2 and appendix G (whose last formula has a typo); arXiv:2406.09044 figure 2.
    """
    shared = (U.double() @ V.double().mT).square().cumsum(0).cumsum(1)
    i, j = torch.arange(1, len(U) + 1), torch.arange(1, len(V) + 1)
    return (shared / torch.minimum(i[:, None], j)).clamp(max=1.0)  # over 1 by rounding only


def principal_angles(U: Float[Tensor, "r1 d"], V: Float[Tensor, "r2 d"]) -> Float[Tensor, " r"]:
    """The angles between two subspaces in radians, ascending: arccos of the singular values of U V^T."""
    return torch.linalg.svdvals(U.double() @ V.double().mT).clamp(max=1.0).arccos()


def grassmann_distance(U: Float[Tensor, "p d"], V: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
    """The projection metric between subspaces of equal dimension p: d^2 = p - ||U V^T||_F^2 = p (1 - phi(p, p))."""
    return (len(U) - (U.double() @ V.double().mT).square().sum()).clamp(min=0.0).sqrt()
