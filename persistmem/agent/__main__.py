"""An agent's entry point, for those who start one by command."""

import sys

from persistmem.agent.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
