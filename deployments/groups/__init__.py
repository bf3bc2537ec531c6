"""Gives the models of a group turns on the memory that they share: who is awake, who waits, who goes to sleep.

policy.py     TurnPolicy: who is awake, from reports and the time alone
scheduler.py  Scheduler: the policy, with a stream of orders to each member
gate.py       Gate: lets requests to the engine while it is awake, and keeps the others
member.py     Member: a replica's part; wakes its engine and puts it to sleep as it is ordered
"""
