"""`localplug new`: write a distribution that installs, passes the conformance kit and trains, with an example to replace.

    from localplug.scaffold.project import Project
    from localplug.scaffold.writing import write

    folder = write(Project("my-rule", "update-rule"))

What it writes is in templates/, a folder for each kind and one for all of them. Importing this imports no torch.
"""
