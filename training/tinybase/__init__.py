"""The tiny base model: tokenizer, pretraining corpus and a seeded builder.

Run it as `python -m training.tinybase --out DIR`. It knows nothing about adapters or serving.
"""
