"""Sentences for the classes of the pocket tasks, as `pocket_clip` has read them: templates with `{}` for the label."""

from __future__ import annotations

from vpeft.data.problems import DataError
from vpeft.errors import nearest

TEMPLATES: dict[str, tuple[str, ...]] = {
    "glyphs": ("the letter {}", "a letter: {}"),
    "handwriting": ("the digit {}", "a handwritten {}"),
    "photographs": ("a photograph of {}", "a small photo of {}"),
    "coast": ("a map with land and water: {}", "{} seen from above"),
    "defects": ("a surface, flaw: {}", "a texture with the flaw {}"),
    "count": ("{} balls", "there are {} balls"),
    "distance": ("a car {} away", "a road and a car, {} from here"),
    "orientation": ("a boat or plane at {}", "a heading of {}"),
    "position": ("a ring in {}", "the ring is in {}"),
}


def pocket_templates(task: str) -> tuple[str, ...]:
    """The templates of one pocket task.

    Raises:
        DataError: there is no such task.
    """
    if task not in TEMPLATES:
        raise DataError(f"The offline suite has no task {task!r}. {nearest(task, TEMPLATES)}")
    return TEMPLATES[task]
