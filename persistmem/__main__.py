"""``python -m persistmem`` is the command line."""

from persistmem.cli import main

if __name__ == "__main__":
    main()
