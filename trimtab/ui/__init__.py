"""A page in the browser that shows results, lets models speak side by side, and starts what the command line can do.

It is a second front, not a second trimtab: what computes is the command line in a process of its own, its words are shown before
they are run, its errors are shown as it writes them. So this room imports neither torch nor transformers, and answers at once.
Who may use it is decided at the door (`doorway`), what may be touched in `places`.
"""
