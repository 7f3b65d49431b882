"""`python -m ppl_gen` is `ppl-gen`."""

from ppl_gen.cli import main

if __name__ == "__main__":
    main()
