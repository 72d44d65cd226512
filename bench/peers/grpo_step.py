"""A step of GRPO by TRL's GRPOTrainer, the work of ./train_qrl bench --part grpo with the same sizes: random weights,
prompts of random tokens, completions that all have their full length (the end token is suppressed), a reward of random
numbers, so that no advantage is zero."""
import random
import tempfile
import time

import datasets
import tokenizers
import torch
import transformers
import trl

from shapes import SHAPES, arguments, peak_mib, random_model, report

a = arguments(__doc__, prompts=(int, 8, "of a step"), generations=(int, 8, "of a prompt"),
              prompt_length=(int, 64, "tokens"), completion_length=(int, 128, "tokens"),
              micro_batch=(int, 8, "completions of one forward and backward"),
              precision=(str, "fp32", "fp32, amp (bf16 autocast over fp32 weights) or bf16"),
              gradient_checkpointing=(bool, False, "recompute activations, as TRL does unless told otherwise"),
              steps=(int, 2, "measured ones, after one to warm up"))
assert a.precision in ("fp32", "amp", "bf16"), a.precision
completions = a.prompts * a.generations
assert completions % a.micro_batch == 0, "prompts x generations is no multiple of --micro_batch"

# a tokenizer whose token i is the word "ti", but for the first three
V = SHAPES[a.model][1]["vocab_size"]
special = ["<unknown>", "<end>", "<pad>"]
words = tokenizers.Tokenizer(tokenizers.models.WordLevel(
    {word: i for i, word in enumerate(special + [f"t{i}" for i in range(3, V)])}, unk_token=special[0]))
words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=special[1], pad_token=special[2],
                                                 padding_side="left")
draw = random.Random(0)
prompts = [" ".join(f"t{draw.randrange(3, V)}" for _ in range(a.prompt_length))
           for _ in range(a.prompts * (a.steps + 1))]
assert all(len(ids) == a.prompt_length for ids in tokenizer(prompts)["input_ids"])


def reward(completions, **_):
    return [draw.random() for _ in completions]


class Clock(transformers.TrainerCallback):
    def __init__(self):
        self.steps, self.generation, self.in_step, self.lengths = [], [], 0.0, []

    def on_step_begin(self, *_, **__):
        self.begin, self.in_step = time.perf_counter(), 0.0

    def on_step_end(self, *_, **__):
        self.steps.append(time.perf_counter() - self.begin)
        self.generation.append(self.in_step)

    def on_log(self, args, state, control, logs=None, **_):
        self.lengths += [logs[k] for k in ("completions/min_length", "completions/mean_length") if k in (logs or {})]


clock = Clock()
model = random_model(a.model, torch.bfloat16 if a.precision == "bf16" else torch.float32)
generate = model.generate


def timed_generate(*args, **kwargs):
    begin = time.perf_counter()
    result = generate(*args, **kwargs)
    clock.in_step += time.perf_counter() - begin
    return result


model.generate = timed_generate
with tempfile.TemporaryDirectory() as folder:
    config = trl.GRPOConfig(
        output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
        per_device_train_batch_size=a.micro_batch, gradient_accumulation_steps=completions // a.micro_batch,
        num_generations=a.generations, max_completion_length=a.completion_length, max_steps=a.steps + 1,
        learning_rate=1e-6, beta=0.0, num_iterations=1, temperature=1.0, bf16=a.precision == "amp",
        gradient_checkpointing=a.gradient_checkpointing, shuffle_dataset=False,
        generation_kwargs={"min_new_tokens": a.completion_length})
    trainer = trl.GRPOTrainer(model=model, reward_funcs=reward, args=config, processing_class=tokenizer,
                              train_dataset=datasets.Dataset.from_dict({"prompt": prompts}), callbacks=[clock])
    trainer.train()
assert all(n == a.completion_length for n in clock.lengths), f"completions of {clock.lengths} tokens"
seconds, generation = min(zip(clock.steps[1:], clock.generation[1:]))
report(model=a.model, precision=a.precision, seconds=seconds, generation_seconds=generation,
       training_seconds=seconds - generation, tokens_per_second=completions * a.completion_length / seconds,
       peak_mib=peak_mib(), trl=trl.__version__)
