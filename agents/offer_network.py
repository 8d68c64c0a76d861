"""The policy network: one score per offer from offer features and the user's context.

    logit_k = β·(uplift_k·e^{g_k} - λ·use_k·e^{h_k}) / scale + f_k,    g, h, f of (context, offer_k)

With g = h = f = 0, as before training, this is the myopic rule. What the policy learns on top is how much
more or less than the predictor's short view an offer is worth to this user: habit, fatigue, opt-out, the
option to wait. These go with the size of his uplift, hence factors beside a term. Normalisation lives in the
network, so that it cannot get lost at export.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from agents.offer_head import offer_head
from envs.observation import LOG_DUAL_PRICE, ObservationLayout
from envs.offers import OfferTensors

STATIC = ("message", "coupon", "depth", "validity")
"""Columns of the catalogue that an offer is told by."""
MONEY = ("net_uplift", "uplift", "cost", "reserve")
"""What is known of an offer to a user beside them, in units of the scale; λ is counted in."""
MOST_NET = 20.0
"""Largest net uplift, in units of the scale, that is told from a larger one."""
MOST_FACTOR = 1.5
"""Largest log of what the network multiplies uplift or charge with."""


@dataclass(frozen=True)
class OfferNetworkShape:
    """Sizes of an offer network.

    Attributes:
        embedding: width d of the user embedding in the observation.
        n_offers: K.
        hidden: width of the hidden layers.
    """

    embedding: int
    n_offers: int
    hidden: int

    @property
    def layout(self) -> ObservationLayout:
        """Layout of the observations that the network reads."""
        return ObservationLayout(self.embedding, self.n_offers)

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as plain values."""
        return asdict(self)


class OfferNetwork(nn.Module):
    """Actor and critic over observation rows; raw in, logits and value features out.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: OfferNetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.layout = shape.layout
        n_context, hidden = self.layout.n_context, shape.hidden
        self.context_mean: torch.Tensor
        self.context_std: torch.Tensor
        self.money_scale: torch.Tensor
        self.static: torch.Tensor
        self.temperature: torch.Tensor
        self.register_buffer("context_mean", torch.zeros(n_context))
        self.register_buffer("context_std", torch.ones(n_context))
        self.register_buffer("money_scale", torch.ones(()))
        self.register_buffer("static", torch.zeros(shape.n_offers, len(STATIC)))
        # Of the exported policy; PPO itself learns at temperature 1.
        self.register_buffer("temperature", torch.ones(()))
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.actor_context = nn.Sequential(nn.Linear(n_context, hidden), nn.Tanh(), nn.Linear(hidden, hidden))
        self.actor_offer = nn.Linear(len(MONEY) + len(STATIC), hidden, bias=False)
        self.actor_score = nn.Linear(hidden, 3)
        self.critic = nn.Sequential(
            nn.Linear(n_context + shape.n_offers, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
        )
        nn.init.zeros_(self.actor_score.weight)
        nn.init.zeros_(self.actor_score.bias)
        # Names that Stable-Baselines3 asks of an extractor.
        self.latent_dim_pi = shape.n_offers
        self.latent_dim_vf = hidden

    @torch.no_grad()
    def set_scale(self, observation: torch.Tensor, offers: OfferTensors) -> None:
        """Fix normalisation from a sample of observations [n, o] and the catalogue's own columns.

        Raises:
            ValueError: the catalogue does not have the network's number of offers.
        """
        if len(offers.message) != self.shape.n_offers:
            raise ValueError(f"{len(offers.message)} offers, but the network scores {self.shape.n_offers}")
        context = observation[:, : self.layout.n_context]
        self.context_mean.copy_(context.mean(dim=0))
        self.context_std.copy_(context.std(dim=0).clamp(min=1e-3))
        uplift = self.layout.offer_block(observation, "uplift")[:, 1:]
        self.money_scale.copy_(uplift.abs().mean().clamp(min=1e-6))
        self.static.copy_(
            torch.stack(
                [
                    offers.message.float(),
                    offers.coupon.float(),
                    offers.depth,
                    offers.validity_weeks.float() / 4.0,
                ],
                dim=1,
            )
        )

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the probability of each offer at the network's temperature, [n, K]; 0 outside the mask."""
        return masked_softmax(self.forward_actor(observation) / self.temperature, mask)

    def prepare(self, observation: torch.Tensor) -> torch.Tensor:
        """Return what the layers are given, [n, p]: no weight is in it, so that once for a row is enough.

        Columns: the normalised context; the net uplift of each offer, as the critic sees it; MONEY and STATIC
        of each offer in turn; uplift; what the offers are charged.
        """
        layout, n_offers = self.layout, self.shape.n_offers
        context = observation[:, : layout.n_context]
        context = ((context - self.context_mean) / self.context_std).clamp(-10.0, 10.0)
        uplift = layout.offer_block(observation, "uplift") / self.money_scale
        price = torch.exp(observation[:, LOG_DUAL_PRICE])[:, None]
        cost, reserve = (
            price * layout.offer_block(observation, name) / self.money_scale for name in ("cost", "reserve")
        )
        charge = cost + reserve
        net = uplift - charge
        # Money spans orders of magnitude; the inverse sine keeps it in reach of tanh, and its sign.
        money = inverse_sinh(torch.stack([net, uplift, cost, reserve], dim=2))
        features = torch.cat([money, self.static.expand(observation.shape[0], -1, -1)], dim=2)
        seen = inverse_sinh(net.clamp(-MOST_NET, MOST_NET))
        return torch.cat(
            [context, seen, features.reshape(-1, features.shape[2] * n_offers), uplift, charge], dim=1
        )

    def score(self, prepared: torch.Tensor) -> torch.Tensor:
        """Return logits over offers, before masking, [n, K], of prepared rows [n, p]."""
        n_offers, n_features = self.shape.n_offers, len(MONEY) + len(STATIC)
        context, _, features, uplift, charge = prepared.split(
            [self.layout.n_context, n_offers, n_features * n_offers, n_offers, n_offers], dim=1
        )
        scores = offer_head(
            self.actor_context(context),
            features.reshape(-1, n_offers, n_features),
            self.actor_offer.weight,
            self.actor_score.weight,
            self.actor_score.bias,
        )
        term, worth, dear = scores.unbind(dim=2)
        worth, dear = (torch.exp(MOST_FACTOR * torch.tanh(value)) for value in (worth, dear))
        net = (uplift * worth - charge * dear).clamp(-MOST_NET, MOST_NET)
        logits: torch.Tensor = self.sharpness * net + term
        return logits

    def appraise(self, prepared: torch.Tensor) -> torch.Tensor:
        """Return value features, [n, hidden], of prepared rows [n, p]."""
        value: torch.Tensor = self.critic(prepared[:, : self.layout.n_context + self.shape.n_offers])
        return value

    def forward_actor(self, observation: torch.Tensor) -> torch.Tensor:
        """Return logits over offers, before masking, [n, K], of observations [n, o]."""
        return self.score(self.prepare(observation))

    def forward_critic(self, observation: torch.Tensor) -> torch.Tensor:
        """Return value features, [n, hidden], of observations [n, o]."""
        return self.appraise(self.prepare(observation))

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [n, K] and value features [n, hidden] of observations [n, o]."""
        prepared = self.prepare(observation)
        return self.score(prepared), self.appraise(prepared)


def inverse_sinh(value: torch.Tensor) -> torch.Tensor:
    """Return asinh(value), written out: ONNX Runtime has it in float32 only."""
    # The square of anything larger might overflow in float32; the logarithm hardly grows from there.
    size = value.abs().clamp(max=1e15)
    grown = torch.log(size + torch.sqrt(size * size + 1.0))
    return torch.where(value < 0, -grown, grown)


def masked_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the softmax over allowed offers, exactly 0 elsewhere; [n, K]."""
    return torch.softmax(torch.where(mask, logits, -1e9), dim=1) * mask


class LearnedPolicy:
    """A trained offer network as a :class:`agents.policy.Policy`: stochastic, the one that is exported.

    Args:
        network: in evaluation mode from here on.
    """

    name = "PPO"

    def __init__(self, network: OfferNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the softmax of the scores over allowed offers, at the network's temperature."""
        return self.network.probabilities(observation, mask)
