"""Vision as the next token: pairs of pictures as one sentence, whose last answer a causal language model says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.text import Perplexity

from ..backbones.names import TRANSFORMERS
from ..backbones.picture_codec import NoCodec, PictureCodec, picture_codec
from ..backbones.points import MissingPlace
from ..batch import Batch, Sample, as_sample, run_model, stacked
from ..data.on_pixels import IGNORED
from ..data.visual_sentences import Balance, PictureMaps, VisualSentences, kinds_of
from ..data.visual_tasks import VISUAL_TASKS, VisualTask, classes_of, resized, visual_task
from ..errors import need_extra
from ..task import Leading, Prediction, Task, UnsuitableTargets, register_task
from .next_tokens import continuation, shifted_divergence, shifted_loss

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..data.preprocessing import Preprocessing

FROM_MASK = "mask/"


class _Kind:
    """The kinds of maps that the visual tasks need; "several" of the class."""

    def __get__(self, task: VisualSequences | None, owner: type[VisualSequences]) -> str:
        return "several" if task is None else kinds_of(task.chosen)


@register_task("visual_sequences")
class VisualSequences(Task):
    """Pictures and answers as one sentence of tokens, learnt by the next token and judged by perplexity (DeLVM).

    A sentence shows `pairs` - 1 pairs of picture and answer of one visual task as examples, then a picture and its
    answer (arXiv 2402.04841). For scores the last answer is generated, decoded and compared with the true picture:
    mIoU where the answer is a class for each pixel, else PSNR in dB. The model is a causal language model of
    transformers over the tokens of `codec`, run with its own head: `--backbone host::hf:FOLDER`.

    The loss is the cross-entropy of the tokens; with a teacher plus KL(teacher || student).
    """

    target_kind: ClassVar[Any] = _Kind()
    stacks_inputs: ClassVar[bool] = False

    visual_tasks: tuple[str, ...] = ("mask",)
    """what pictures are turned into: mask, edges, depth, normals, saliency, denoise, inpaint"""
    codec: str = "pocket_vq"
    """what makes tokens of pictures: pocket_vq, a file of such a model, or hf:FOLDER with a JanusVQVAE"""
    pairs: int = Field(default=4, ge=1, le=64)
    """pairs of picture and answer in a sentence, the one to complete included"""
    learn: Literal["all", "answers", "last"] = "all"
    """which tokens are learnt: all, those of all answers, or those of the last answer alone"""
    limits: dict[str, int] = Field(default_factory=dict)
    """for some visual tasks, of how many training images there are pairs; the others have all"""
    balance: Balance = "none"
    """what training does for visual tasks with fewer pairs: none, repeat them, or augment (crops and mirror images)"""
    generate: bool = True
    """whether scores generate the last answer; false gives perplexity alone"""
    temperature: float = Field(default=0.0, ge=0)
    """of the generated tokens; 0 takes the most probable (DeLVM draws with 0.1)"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """generated tokens are among the most probable that have this much probability together (DeLVM: 0.75)"""
    teacher: str | None = None
    """hf:FOLDER of a larger causal model over the same tokens, from which training distils"""
    teacher_weight: float = Field(default=1.0, ge=0)
    """factor of the divergence from the teacher"""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """what logits of teacher and student are divided by"""
    codec_digest: str = ""
    """sha256 of the codec's weights; filled in by training"""
    prompts: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """tokens of the example pairs that `predict` shows before a picture; filled in by training"""

    @field_validator("visual_tasks", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return tuple(given.split(",")) if isinstance(given, str) else given

    @field_validator("visual_tasks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in VISUAL_TASKS]
        if unknown or not names or len(set(names)) < len(names):
            raise ValueError(f"it names some of {', '.join(VISUAL_TASKS)}, each once")
        return names

    @field_validator("limits")
    @classmethod
    def _counts(cls, limits: dict[str, int]) -> dict[str, int]:
        if any(name not in VISUAL_TASKS or count < 1 for name, count in limits.items()):
            raise ValueError(f"it maps some of {', '.join(VISUAL_TASKS)} to numbers of images above 0")
        return limits

    @property
    def chosen(self) -> tuple[VisualTask, ...]:
        """The visual tasks."""
        return tuple(visual_task(name) for name in self.visual_tasks)

    @property
    def leading(self) -> Leading:
        return Leading("perplexity", higher_is_better=False)

    @property
    def classes(self) -> int:
        """How many classes a mask tells apart."""
        own = [name for name in self.labels if name.startswith(FROM_MASK)]
        return max(1, len(own) if "+" in self.target_kind else len(self.labels))

    @property
    def data_labels(self) -> tuple[str, ...] | None:
        """The classes of the masks; None where no visual task knows any."""
        return self.labels if any(one.has_classes for one in self.chosen) else None

    def bind(self, train: Any) -> Self:
        """With the class names, the codec's digest, and examples for `predict`."""
        bound = super().bind(train)
        if not isinstance(train, VisualSentences) or self.prompts:
            return bound
        prompts = {name: tuple(tokens) for name, tokens in train.prompts().items()}
        return bound.model_copy(update={"codec_digest": train.codec.digest(), "prompts": prompts})

    def head(self, backbone: Backbone, width: int) -> None:
        """None: the language model keeps its own.

        Raises:
            MissingPlace: the model is no whole causal language model.
        """
        if backbone.host is None or backbone.inputs.layout != "tokens":
            raise MissingPlace(
                f"The task {self.name} continues rows of tokens, and {backbone.facts.architecture} is no whole causal"
                " language model. Take one with its own head: --backbone host::hf:FOLDER of a LlamaForCausalLM."
            )

    # -- what is read -------------------------------------------------------------------------------------------------

    def own_codec(self) -> PictureCodec:
        """The tokenizer of pictures.

        Raises:
            NoCodec: there is none of this name, or it is another one than in training.
        """
        found = picture_codec(self.codec)
        if self.codec_digest and found.digest() != self.codec_digest:
            raise NoCodec(
                f"The tokenizer {self.codec} has the sha256 {found.digest()[:12]}, and training used"
                f" {self.codec_digest[:12]}. Its tokens mean something else; name the file of the training."
            )
        return found

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        """Images in their own size; the codec's size is reached when tokens are made."""
        return PictureMaps(tuple(self.target_kind.split("+")))

    def dataset(self, images: Any, training: bool) -> VisualSentences:
        labels = self.labels or tuple(getattr(images, "labels", ()))
        return VisualSentences(
            images,
            self.chosen,
            self.own_codec(),
            pairs=self.pairs,
            classes=self.model_copy(update={"labels": tuple(labels)}).classes,
            training=training,
            limits=self.limits,
            balance=self.balance,
        )

    def check(self, train: Any) -> None:
        if not isinstance(train, VisualSentences):
            raise UnsuitableTargets(
                f"The task {self.name} learns sentences, and images are given. Wrap them: task.dataset(images, True)."
            )

    def sample_of(self, image: Any, transform: Callable[..., Any], id: str) -> Sample:
        """The picture's tokens behind the examples of each visual task, (tasks, (2 P - 1) N).

        Raises:
            UnsuitableTargets: the task was not trained, so it has no examples.
        """
        codec = self.own_codec()
        missing = [name for name in self.visual_tasks if name not in self.prompts]
        if missing:
            raise UnsuitableTargets(f"There are no examples of {', '.join(missing)}: train an adapter first.")
        own = codec.encoded(resized(transform(image), codec.side)[None])[0]
        rows = [torch.cat([torch.tensor(self.prompts[name], dtype=torch.int64), own]) for name in self.visual_tasks]
        return Sample(torch.stack(rows), None, id)

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Sentences (B, L) of data sets; of pictures to complete, the rows of one behind those of another."""
        whole = [as_sample(sample) for sample in samples]
        ids = tuple(sample.id for sample in whole)
        inputs = torch.stack([sample.input for sample in whole])
        if inputs.dim() == 3:
            return Batch(inputs.flatten(0, 1), None, ids, size=len(whole))
        return Batch(inputs, stacked([sample.target for sample in whole]), ids, size=len(whole))

    # -- how it is learnt and run -------------------------------------------------------------------------------------

    def run(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """`logits` (B, L, V); in training the teacher's; else `answer`, the tokens (B, N) that the model says last."""
        codec, tokens = picture_codec(self.codec), batch.inputs
        self._require_vocabulary(model, codec)
        said: dict[str, Tensor] = {}
        if batch.targets is not None:
            out = run_model(model, batch.with_(inputs={"input_ids": tokens, "use_cache": False}))
            said["logits"] = out.logits
        if getattr(model, "training", False):
            if self.teacher is not None and self.teacher_weight:
                with torch.no_grad():
                    said["teacher"] = _teacher(self.teacher, str(tokens.device))(input_ids=tokens).logits
                self._require_same_tokens(said["logits"], said["teacher"])
            return said
        if batch.targets is None or self.generate:
            prompt = tokens if batch.targets is None else tokens[:, : -codec.count]
            said["answer"] = continuation(model, prompt, codec.count, temperature=self.temperature, top_p=self.top_p)
        return said

    def _require_vocabulary(self, model: Any, codec: PictureCodec) -> None:
        host = getattr(model, "host_alone", None)
        known = getattr(getattr(host, "config", None), "vocab_size", codec.codes)
        if known < codec.codes:
            raise UnsuitableTargets(
                f"The codec {self.codec} has {codec.codes} tokens, and {type(host).__name__} knows {known}. Take a"
                f" model with vocab_size = {codec.codes}."
            )

    def _require_same_tokens(self, student: Tensor, teacher: Tensor) -> None:
        if student.shape[-1] != teacher.shape[-1]:
            raise UnsuitableTargets(
                f"The teacher {self.teacher} knows {teacher.shape[-1]} tokens, and the student {student.shape[-1]}."
                " They must be trained on the tokens of one codec."
            )

    def counted(self, length: int, each: int, device: torch.device) -> Tensor:
        """Which tokens of a sentence are learnt, bool (length,); a picture has `each` tokens."""
        picture = torch.arange(length, device=device) // each
        if self.learn == "answers":
            return picture % 2 == 1
        return picture == length // each - 1 if self.learn == "last" else picture >= 0

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        tokens = batch.inputs
        counts = self.counted(tokens.shape[1], picture_codec(self.codec).count, tokens.device)
        parts = {"cross_entropy": shifted_loss(outputs["logits"], tokens, counts)}
        if "teacher" in outputs:
            apart = shifted_divergence(outputs["logits"], outputs["teacher"], counts, self.teacher_temperature)
            parts["teacher"] = self.teacher_weight * apart
        return parts

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        return SentenceScores(self)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """A picture for each visual task, as `Prediction.pictures`; of masks also the share of each class."""
        each = 1 if batch.targets is not None else len(self.visual_tasks)
        tokens = outputs["answer"].reshape(len(batch), each, -1)
        painted = picture_codec(self.codec).decoded(tokens.flatten(0, 1))
        painted = painted.reshape(len(batch), each, *painted.shape[1:])
        found = []
        for row, pictures in enumerate(painted):
            chosen = self.chosen if batch.targets is None else (self.chosen[int(batch.targets["task"][row])],)
            rows = tuple(
                line for one, picture in zip(chosen, pictures, strict=True) for line in self._told(one, picture)
            )
            name = batch.ids[row] if batch.ids else str(row)
            values = {one.name: tokens[row, number].tolist() for number, one in enumerate(chosen)}
            made = {one.name: _bytes(picture) for one, picture in zip(chosen, pictures, strict=True)}
            found.append(Prediction(name, rows, {"tokens": values}, pictures=made))
        return found

    def _told(self, one: VisualTask, picture: Tensor) -> list[dict[str, Any]]:
        if not one.has_classes:
            return [{"task": one.name, "shows": "a picture", "share": 1.0}]
        numbers, counts = torch.unique(classes_of(picture[None], self.classes), return_counts=True)
        named = [name for name in self.labels if "+" not in self.target_kind or name.startswith(FROM_MASK)]
        shares = sorted(zip(counts.tolist(), numbers.tolist(), strict=True), reverse=True)
        pixels = picture.shape[-2] * picture.shape[-1]
        return [
            {"task": one.name, "shows": named[number].removeprefix(FROM_MASK), "share": count / pixels}
            for count, number in shares
        ]


def _bytes(picture: Tensor) -> Tensor:
    """A picture (3, H, W) in [0, 1] as uint8."""
    return (picture.float().clamp(0, 1) * 255).round().byte()


@lru_cache(maxsize=2)
def _teacher(name: str, device: str) -> nn.Module:
    """The frozen teacher of a folder on a device.

    Raises:
        NoCodec: the folder holds no causal language model.
    """
    transformers: Any = need_extra("transformers", "hf")
    folder = name.removeprefix(TRANSFORMERS)
    try:
        found: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UnsuitableTargets(f"The teacher {folder} is no folder of a causal language model: {said}") from None
    return found.to(device).eval().requires_grad_(False)


class SentenceScores(Metric):
    """`perplexity` of all tokens but the first, `answer_perplexity` of the last answer's, `TASK/perplexity` of those of
    one visual task; of generated answers `TASK/miou` or `TASK/psnr`.
    """

    full_state_update = False

    def __init__(self, task: VisualSequences) -> None:
        super().__init__()
        self.task = task
        self.every = Perplexity()
        self.last = Perplexity()
        self.of_task = nn.ModuleDict({one.name: Perplexity() for one in task.chosen})
        scores: dict[str, Metric] = {}
        for one in task.chosen if task.generate else ():
            if one.has_classes:
                scores[one.name] = MulticlassJaccardIndex(num_classes=max(2, task.classes), ignore_index=IGNORED)
            else:
                scores[one.name] = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
        self.scores = nn.ModuleDict(scores)

    def update(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Count a batch."""
        tokens, logits = batch.inputs, outputs["logits"]
        codec = picture_codec(self.task.codec)
        self.every.update(logits[:, :-1], tokens[:, 1:])
        said, wanted = logits[:, -codec.count - 1 : -1], tokens[:, -codec.count :]
        self.last.update(said, wanted)
        painted = codec.decoded(outputs["answer"]) if "answer" in outputs else None
        for number, one in enumerate(self.task.chosen):
            rows = torch.as_tensor(batch.targets["task"]) == number
            if not bool(rows.any()):
                continue
            perplexity: Any = self.of_task[one.name]
            perplexity.update(said[rows], wanted[rows])
            if painted is None:
                continue
            score: Any = self.scores[one.name]
            if one.has_classes:
                score.update(classes_of(painted[rows], self.task.classes), batch.targets["numbers"][rows])
            else:
                score.update(painted[rows], batch.targets["answer"][rows])

    def compute(self) -> dict[str, Tensor]:
        """All values; a visual task without a pair has none."""
        found = {"perplexity": self.every.compute(), "answer_perplexity": self.last.compute()}
        for one in self.task.chosen:
            perplexity: Any = self.of_task[one.name]
            if not perplexity.update_called:
                continue
            found[f"{one.name}/perplexity"] = perplexity.compute()
            if one.name in self.scores:
                score: Any = self.scores[one.name]
                found[f"{one.name}/{'miou' if one.has_classes else 'psnr'}"] = score.compute()
        return found

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        for one in (self.every, self.last, *self.of_task.values(), *self.scores.values()):
            assert isinstance(one, Metric)
            one.reset()
