"""The commands that localplug itself has, a file each; plugins bring more by the hook localplug_commands.

A command's file has HELP (a line), EXAMPLES (lines of a shell), arguments(parser), which adds its arguments, and run(options),
which returns the exit status. Importing it imports no torch. What `run` raises for a user's mistake, LocalPlugError,
ValueError, ImportError or OSError, is shown as a line, without a traceback. They all print by localplug.commands.terminal.
"""

FILES = {
    "plugins": "list_plugins",
    "hooks": "list_hooks",
    "new": "scaffolding",
    "check": "checking",
    "replay": "replaying",
    "completion": "completing",
}
"""What a user types: the file in this folder."""
