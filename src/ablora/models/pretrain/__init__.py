"""The embedded base model `pico`: corpus, recipe, training, evaluation."""
