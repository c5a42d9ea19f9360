"""Hostile input: what may come of arguments, configs, states, files and gradients that nobody means.

1. A wrong argument is refused by its name: each wrong value, for each argument of each public name (`test_calls`).
2. A changed config or state is a ValueError or TypeError before anything is assigned, and before an update runs; or it
   is a valid one, and works (`test_configs`). So is a file that was cut off or has other bytes (`test_files`).
3. No code of a config, state or file runs, and Keras' safe mode stays on.
4. Nothing hangs.
5. A bad gradient, rate or decay spoils what it spoils in Keras, and no more. A gradient or variable that does not fit
   is an error that names the variable, and nothing has changed (`test_gradients`).

`inputs` makes the input. `watch` judges what came of it.
"""
