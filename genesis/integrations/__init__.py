"""genesis in the conventions of its hosts: each module is for one, and imports that one alone.

`torch`: an optimizer that waits for a deferred capture. `lightning`: a plugin for the Trainer.
`huggingface`: a Trainer, and the state of an Accelerator. `jax`: pytrees onto shardings.
`distributed`: storage for torch.distributed.checkpoint.
Nothing of a host is imported before its module is used.
"""
