"""Running the example in a docstring."""

import doctest


def run_example(of):
    """Run it; fails where it prints something else, or has nothing to run."""
    example = doctest.DocTestParser().get_doctest(of.__doc__, {}, of.__qualname__, None, 0)
    said = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    failed, attempted = runner.run(example, out=said.append)
    assert attempted > 0
    assert not failed, "".join(said)
