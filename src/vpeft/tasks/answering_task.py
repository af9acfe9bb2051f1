"""What captioning and questions about images share: a picture and words in, an answer in words out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional

from ..backbones.points import MissingPlace
from ..batch import Batch, Sample, as_sample
from ..host_formats.image_texts import image_texts, losses_of
from ..task import Prediction, Task

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..data.preprocessing import Preprocessing


class AsBytes:
    """An image, or a float tensor (C, H, W) of values in [0, 1], as bytes (3, H, W) in its own size."""

    def __call__(self, image: Any) -> Tensor:
        if not isinstance(image, Tensor):
            image = functional.pil_to_tensor(image.convert("RGB"))
        pixels = torch.as_tensor(image)
        if pixels.is_floating_point():
            pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels if pixels.shape[0] == 3 else pixels[:1].expand(3, -1, -1)


class AnsweringTask(Task):
    """Tunes a multimodal language model, a host that runs with its own head: the loss is on the answer's tokens alone.

    Batches hold pictures in their own size and words; the model's own processor makes tokens of both, see
    vpeft/host_formats/image_texts.py. In training the outputs are the model's, with its loss; in evaluation they are
    {"said": texts}, which the model generates greedily, or with beams, with a key-value cache.
    """

    stacks_inputs: ClassVar[bool] = False

    template: str = "{}"
    """how words are put to a model without a chat template, with {} for them"""
    longest: int = Field(default=32, gt=0)
    """tokens of an answer at most"""
    beams: int = Field(default=1, gt=0)
    """answers that are followed side by side while one is generated; 1 is greedy"""

    @abstractmethod
    def words(self, sample: Sample) -> tuple[str, tuple[str, ...]]:
        """What is asked of a sample, and the answers that it comes with; none where there is no target.

        Raises:
            UnsuitableTargets: its target is of another kind.
        """

    def head(self, backbone: Backbone, width: int) -> None:
        """None: the host keeps its own head.

        Raises:
            MissingPlace: the model is no whole one.
        """
        if backbone.host is None:
            raise MissingPlace(
                f"{backbone.facts.architecture} says nothing in words. The task {self.name} tunes a whole multimodal"
                " language model (Llava, SmolVLM, Idefics3, BLIP-2): --host hf:FOLDER."
            )

    @property
    def data_labels(self) -> None:
        """Whatever there is: answers are words, not classes."""
        return None

    def dataset(self, images: Any, training: bool) -> Any:
        """The images; in training each with one of its answers."""
        return WithAnswers(images, self, training)

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        """Pictures in their own size, 8 bits: the model's processor resizes them."""
        return AsBytes()

    def check(self, train: Any) -> None:
        """Look at the first sample."""
        if len(train):
            self.words(as_sample(train[0]))

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Pictures (3, H, W) as a list beside what is asked of each; targets are the answers of each."""
        whole = [as_sample(sample) for sample in samples]
        asked = [self.words(sample) for sample in whole]
        ids = tuple(sample.id for sample in whole)
        inputs = {"pictures": [AsBytes()(sample.input) for sample in whole], "words": [words for words, _ in asked]}
        answers = [said for _, said in asked]
        return Batch(inputs, answers if all(answers) else None, ids if any(ids) else (), size=len(whole))

    def run(self, model: Any, batch: Batch) -> Any:
        """See the class.

        Raises:
            NoHostFormat: the model is no multimodal language model, or has no processor.
        """
        spoken = image_texts(getattr(model, "host_alone", model), self.target_kind)
        pictures = batch.inputs["pictures"]
        prompts = [spoken.prompt(words, self.template) for words in batch.inputs["words"]]
        if getattr(model, "training", False):
            return spoken.learn(model, pictures, prompts, [answers[0] for answers in batch.targets])
        return {"said": spoken.answer(model, pictures, prompts, max_new_tokens=self.longest, num_beams=self.beams)}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The host's own: the mean cross-entropy over the tokens of the answers, with the one that ends each."""
        return dict(losses_of(outputs))

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """What the model says of each picture."""
        found = []
        for row, said in enumerate(outputs["said"]):
            asked = batch.inputs["words"][row]
            told = {"question": asked, "answer": said} if asked else {"answer": said}
            found.append(Prediction(batch.ids[row] if batch.ids else str(row), (told,)))
        return found


class WithAnswers:
    """Images with what is asked and answered.

    Args:
        images: a data set of (image, target).
        task: reads the targets.
        training: whether one answer of each is drawn, and not all are given.
    """

    def __init__(self, images: Any, task: AnsweringTask, training: bool) -> None:
        self.images, self.task, self.training = images, task, training
        self.labels: list[str] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        sample = as_sample(self.images[index])
        words, answers = self.task.words(sample)
        if self.training and len(answers) > 1:
            answers = (answers[int(torch.randint(len(answers), ()))],)
        return Sample(sample.input, (words, answers), sample.id)

    def set_epoch(self, epoch: int) -> None:
        """Tell the images which epoch begins."""
        tell = getattr(self.images, "set_epoch", None)
        if callable(tell):
            tell(epoch)


def asked_and_answered(target: Any) -> tuple[str, tuple[str, ...]] | None:
    """A target that is words and answers already; None for any other."""
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], str) and isinstance(target[1], tuple):
        return target[0], target[1]
    return None
