"""levelt: where do instructions act inside a language model, while it reads or while it speaks?"""

__version__ = "0.1.0"
