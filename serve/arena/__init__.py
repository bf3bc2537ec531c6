"""The blind arena: duels of two models without names, votes kept in SQLite, and a board of ratings for each task.

votes.py         Vote: a line of the record; a duel's two seats and what a voter may choose
store.py         VoteStore: duels that wait for their vote, and votes, in one SQLite file
ratings.py       Bradley-Terry strengths and their covariance
board.py         ArenaBoard: the ratings of a task's models with intervals, and what is wrong with its votes
presentation.py  writes both answers of a duel alike
duel.py          draws two models, asks both, and has a judge vote
"""
