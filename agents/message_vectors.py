"""The vectors by which texts are matched with users: centred, and scaled to a population.

The match of a user u with a text p is the dot product of two BERT outputs, as in the response model. Taken as
it is, one text suits everybody, for embeddings share a large common part. Both sides are therefore centred,
and the match is measured in standard deviations over users,

    z(u, p) = (u - ū)ᵀp / √(pᵀΣp),    ū, Σ: mean and covariance of the users' embeddings,

so that a text is high for those whom it suits better than it suits others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from agents.message_query import Embed, FloatArray
from agents.message_templates import TemplateCatalogue, TemplateError


@dataclass(frozen=True, eq=False)
class MessageVectors:
    """T templates, C categories, embedding width d.

    Attributes:
        copy: [T, C, d] p_tc - p̄_t, what each text says of a category beyond what its template says of any,
            scaled so that u·copy - copy_mean is z; 0 where a template names no category.
        copy_mean: [T, C] ū·copy.
        audience: [T, d] like - unlike of each template's audience, scaled alike; 0 for everyone.
        audience_mean: [T] ū·audience.
    """

    copy: FloatArray
    copy_mean: FloatArray
    audience: FloatArray
    audience_mean: FloatArray

    def __post_init__(self) -> None:
        if self.copy.ndim != 3:
            raise TemplateError(f"copy has shape {self.copy.shape}, expected (T, C, d)")
        templates, categories, width = self.copy.shape
        shapes = {
            "copy": self.copy.shape,
            "copy_mean": (templates, categories),
            "audience": (templates, width),
            "audience_mean": (templates,),
        }
        for name, shape in shapes.items():
            found = getattr(self, name)
            if found.shape != shape or not np.isfinite(found).all():
                raise TemplateError(
                    f"{name} has shape {found.shape}, expected finite numbers of shape {shape}"
                )

    @classmethod
    def build(
        cls,
        catalogue: TemplateCatalogue,
        words: Sequence[str],
        users: npt.NDArray[np.floating],
        embed: Embed,
    ) -> MessageVectors:
        """Embed all texts on all categories, and what their audiences are like.

        Args:
            catalogue: the texts.
            words: [C] categories in the words of user texts.
            users: [m, d] embeddings of the users among whom a text is more or less fitting.
            embed: the encoder that reads users.

        Raises:
            TemplateError: no categories, or fewer than two users.
        """
        if not words or users.ndim != 2 or len(users) < 2:
            raise TemplateError(
                f"texts need categories and the embeddings of at least 2 users, got {len(words)} categories "
                f"and users of shape {users.shape}"
            )
        population = np.asarray(users, dtype=np.float64)
        width = population.shape[1]
        copy = np.zeros((len(catalogue.templates), len(words), width))
        for place, template in enumerate(catalogue.templates):
            if template.names_category:
                embedded = np.asarray(embed([template.reading(one) for one in words]), dtype=np.float64)
                copy[place] = embedded - embedded.mean(axis=0)
        contrast: dict[str | None, FloatArray] = {None: np.zeros(width)}
        for one in catalogue.audiences:
            like, unlike = np.asarray(embed([one.like, one.unlike]), dtype=np.float64)
            contrast[one.name] = like - unlike
        audience = np.stack([contrast[template.audience] for template in catalogue.templates])
        return cls(*_scaled(copy, population), *_scaled(audience, population))

    def copy_match(
        self, users: FloatArray, templates: npt.NDArray[np.int64], categories: npt.NDArray[np.int64]
    ) -> FloatArray:
        """Return z of each of F templates on each user's S categories, [b, F, S].

        Args:
            users: [b, d].
            templates: [F].
            categories: [b, S]; where negative, z is 0.
        """
        out = np.zeros((len(users), len(templates), categories.shape[1]))
        for category in np.unique(categories[categories >= 0]):
            row, slot = np.nonzero(categories == category)
            matched = users[row] @ self.copy[templates, category].T - self.copy_mean[templates, category]
            out[row, :, slot] = matched
        return out

    def audience_match(self, users: FloatArray, templates: npt.NDArray[np.int64]) -> FloatArray:
        """Return z of the audiences of F templates for b users, [b, F]."""
        matched: FloatArray = users @ self.audience[templates].T - self.audience_mean[templates]
        return matched

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the arrays by name, as they are stored."""
        return {item.name: getattr(self, item.name).astype(np.float32) for item in fields(self)}


def _scaled(vectors: FloatArray, users: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Vectors [..., d] over the spread of their match among users, and the mean user's match with them."""
    centre = users.mean(axis=0)
    covariance = np.atleast_2d(np.cov(users, rowvar=False, bias=True))
    spread = np.sqrt(np.einsum("...d,de,...e->...", vectors, covariance, vectors).clip(min=0.0))
    # Where users differ by rounding errors alone, nobody is suited better than others.
    told = (spread > 1e-9 * (1.0 + np.abs(vectors @ centre)))[..., None]
    scaled = np.divide(vectors, spread[..., None], out=np.zeros_like(vectors), where=told)
    return scaled, scaled @ centre
