"""Multimodal language models: adapters on the vision tower, the projector and the language model; questions, captions.

A tiny Llava with random weights stands in for a checkpoint: `create_backbone("host::hf:FOLDER")` loads a real one.
"""

import tokenizers
import torch
import transformers

import vpeft
from vpeft.explanation.representation import ranks_by_block
from vpeft.methods import PTPEFT, LoRA, PrefixTuning
from vpeft.tasks.captioning import Captioning
from vpeft.tasks.visual_question_answering import VisualQuestionAnswering

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "what", "colour", "is", "it", "question", "answer", ":", "?"]
WORDS += ["red", "green", "blue", "a", "picture"]


def tiny_llava():
    """Llava of two layers, and its processor of pictures and words."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=4)
    model = transformers.LlavaForConditionalGeneration(config)
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    words.image_token = "<image>"
    size = {"height": 32, "width": 32}
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    model.processor = transformers.LlavaProcessor(
        pictures, words, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return model


colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
data = [
    (torch.tensor(pixel, dtype=torch.uint8)[:, None, None].expand(3, 40, 48), ("what colour is it ?", (word,)))
    for word, pixel in colours.items()
]

# [questions]
host = tiny_llava()  # vpeft.create_backbone("host::hf:FOLDER") for a checkpoint with its processor
task = VisualQuestionAnswering(template="question : {} answer :", longest=2)
methods = {"vision": LoRA(rank=2), "language": LoRA(rank=4)}
tuned = vpeft.tune(host, methods, train=("projector",), task=task)  # the projector trains in full
settings = vpeft.Optimisation(epochs=3, batch=3, lr=1e-2)
result = vpeft.fit(tuned, task.dataset(data, True), task.dataset(data, False), optimisation=settings, progress=False)
print(result.val.values)
batch = task.collate(data)
print(task.run(tuned.eval(), batch)["said"])
tuned.save("questions.safetensors")
again = vpeft.load(tiny_llava(), "questions.safetensors")
# [/questions]

# [captions]
host = tuned.detach()
task = Captioning(longest=4, ngrams=2)
captions = [(picture, (f"a {answers[0]} picture",)) for picture, (_, answers) in data]
tuned = vpeft.tune(host, {"language": PrefixTuning(length=4)}, task=task, show=False)
vpeft.fit(tuned, task.dataset(captions, True), optimisation=settings, task=task, progress=False)
print(vpeft.evaluate(tuned, task.dataset(captions, False), task=task).values)
host = tuned.detach()
# [/captions]

# [generate]
tuned = vpeft.tune(host, {"vision": LoRA(rank=2), "language": PrefixTuning(length=4)}, show=False).eval()
given = host.processor(images=[[data[0][0]]], text=["<image> a"], return_tensors="pt")
given.pop("mm_token_type_ids", None)
print(tuned.generate(**given, max_new_tokens=4, do_sample=False, suppress_tokens=[4]))  # with a key-value cache
host = tuned.detach()
# [/generate]

# [pt_peft]
task = VisualQuestionAnswering(template="question : {} answer :", longest=2)
method = PTPEFT(length=4, peft="lora", rank=2, share=0.5)  # half of the training is for prefixes alone
tuned = vpeft.tune(host, {"vision": method, "language": method}, task=task, show=False)
vpeft.fit(tuned, task.dataset(data, True), optimisation=settings, task=task, progress=False)
for row in ranks_by_block(tuned.eval(), lambda one: task.run(tuned, one), [task.collate(data)]):
    print(f"{row.name}: effective rank {row.before:.2f} -> {row.after:.2f}")
# [/pt_peft]
