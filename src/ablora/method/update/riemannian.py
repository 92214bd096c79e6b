"""Riemannian preconditioning: steps that do not depend on how the product is split into factors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch.nn import Parameter
from torch.optim import Optimizer

from ablora.method.structure._base import Factors
from ablora.method.update._gram import Side, precondition
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Riemannian:
    """Precondition each factor's gradient by its partner's Gram matrix, for every pair and every expert by itself.

    G_A <- (B^T B + delta I)^-1 G_A,     G_B <- G_B (A A^T + delta I)^-1,     A (r_e, n), B (m, r_e)

    With SGD and delta -> 0 the product moves by dW = -lr s^2 (G P_rows(A) + P_cols(B) G), whatever the split: (Q A,
    B Q^-1) moves alike. The scaling s is not compensated, as published. Everything beside A and B (a router, a
    magnitude) keeps its gradient.

    order `jacobi`: both Gram matrices are of the factors before the step. `gauss_seidel`: A is stepped first and B's
        preconditioner is of the new A.
    lr_ratio: learning rate of A and B over the run's. others_lr_ratio: of everything else.

    Source: arXiv:2402.02347; pilancilab/Riemannian_Preconditioned_LoRA@c3a2c1b Mistral-7B/mistral/custom_optimizer.py;
        huggingface/peft 0.21.2 optimizers/riemannian.py (delta 1e-2 there). Per expert:
        arXiv:2502.15828; THUDM/MoELoRA_Riemannian@e5c69a0 custom_optimizer.py.
    Differs: `train.optimizer` says which rule takes the gradients. sgd is SGDr. The official AdamWr is
        `order: gauss_seidel` with train.optimizer=adamw_hf train.correct_bias=false train.eps=1e-6 (its steps begin
        3.16 times larger than torch's AdamW, the default here). A matrix that cannot be factored leaves its gradient
        as it is, as in the official code, and is counted in the record of the step (`preconditioner_fallbacks`).
        The official mixtures clip the router's gradient alone; here `train.clip_norm` acts on all, before this.
        delta 1e-6 multiplies G_A by up to 1e6 while B is small; the papers tune it from 1e-6 to 100.
    """

    revision: ClassVar[int] = 1
    by_expert: ClassVar[bool] = True
    """Every expert must be a pair of its own: heads on one A are refused (`method.crossings`)."""
    delta: float
    order: Literal["jacobi", "gauss_seidel"]
    lr_ratio: float = 1.0
    others_lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        check(self.delta > 0, "delta", self.delta, "a positive number: 1e-6 in the papers, 1e-2 in PEFT")
        for name in ("lr_ratio", "others_lr_ratio"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a positive number")

    def trains(self, role: str) -> bool:
        return True

    def groups(self, roles: Mapping[str, Sequence[Parameter]], lr: float) -> list[dict[str, Any]]:
        factors = [p for role, parameters in roles.items() if role in ("A", "B") for p in parameters]
        others = [p for role, parameters in roles.items() if role not in ("A", "B") for p in parameters]
        groups = [{"params": factors, "lr": lr * self.lr_ratio}, {"params": others, "lr": lr * self.others_lr_ratio}]
        return [group for group in groups if group["params"]]

    def step(self, optimizer: Optimizer, modules: Mapping[str, Factors], experts: int) -> dict[str, float]:
        to_A, to_B = _sides(modules, "A", "B"), _sides(modules, "B", "A")
        if self.order == "jacobi":
            failed = precondition([*to_A, *to_B], experts, self.delta)
            optimizer.step()
        else:
            late = {id(params["B"]) for params, _ in modules.values()}
            failed = precondition(to_A, experts, self.delta)
            _step_without(optimizer, lambda p: id(p) in late)
            failed += precondition(to_B, experts, self.delta)
            _step_without(optimizer, lambda p: id(p) not in late)
        return {"preconditioner_fallbacks": float(failed)}


def _sides(modules: Mapping[str, Factors], role: str, partner: str) -> list[Side]:
    factors = [params for params, _ in modules.values()]
    return [Side(grad, params[partner]) for params in factors if (grad := params[role].grad) is not None]


def _step_without(optimizer: Optimizer, left_out: Callable[[Parameter], bool]) -> None:
    """A step of the other parameters; torch's optimizers pass over what has no gradient, its decay and state too."""
    kept = {p: p.grad for group in optimizer.param_groups for p in group["params"] if left_out(p)}
    for p in kept:
        p.grad = None
    optimizer.step()
    for p, grad in kept.items():
        p.grad = grad
