"""`diptych batch`: pictures by the million through the models of a Ray cluster, without a gateway, by Ray Data.

    list      the names of all pictures but those that an earlier call has answered: tasks
    decode    each file is read, checked and decoded once: tasks on CPUs
    a model   a pool of actors for each engine, each with the worker of a replica; it adds its models' replies
    merge     the replies become the merged one, by the same rules, and a line: tasks

The lines come to this process, which writes them as the parts of a folder, as `diptych run` does; so a later call goes
on where this one ended, and every picture has one line.

question.py  what every picture is asked, checked as a gateway checks a request
stages.py    the stages, on Ray
command.py   the command line, and what it writes
"""
