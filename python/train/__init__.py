"""Training of the model in models/flux-mini: python -m train --help, README.md."""
