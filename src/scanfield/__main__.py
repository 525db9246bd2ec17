"""`python -m scanfield` is the command `scanfield`."""

from scanfield.cli.main import main

raise SystemExit(main())
