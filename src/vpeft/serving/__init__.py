"""Many adapters on one backbone, over HTTP: `vpeft serve FOLDER --backbone B`."""
