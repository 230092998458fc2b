"""What one user goes through on several nodes at once: the hazards of the contract, by number. Each
returns what went wrong."""

import asyncio
from contextlib import suppress

from sesiones.sesion import Refusal, Sesion, StoreUnavailable
from tests.harness.records import MAX, digest, index_key, session_key
from tests.store.naive import LosesReplies
from tests.store.races import AGE, PER_USER, Nodes, Scenario


async def logout_races_slide_and_put(nodes: Nodes, user: int) -> list[str]:
    """1. Slides and PUTs of a session that is being logged out."""
    sesion = await nodes.any().create(user, "d")
    token = sesion.Token_Sesion
    later = sesion._replace(Fecha_Expiracion=sesion.Fecha_Expiracion + 100)

    async def logout() -> tuple[int | Refusal, Sesion | None]:
        ended = await nodes.any().end(token, token)
        return ended, await nodes.any().find(token)

    (ended, seen), *_ = await nodes.race(
        logout(),
        nodes.any().find(token),
        nodes.any().update(sesion._replace(Dispositivo="e")),
        nodes.any().update(later),
        nodes.any().find(token),
    )
    wrong = []
    if ended != 1:
        wrong.append(f"the logout ended {ended}")
    if seen is not None or await nodes.any().find(token) is not None:
        wrong.append("a session lives after its logout")
    if await nodes.exists(sesion):
        wrong.append("a session's key is there after its logout")
    return wrong


async def logout_all_races_create_and_slide(nodes: Nodes, user: int) -> list[str]:
    """2. Sessions that are made, used and changed while all of the user's are being ended."""
    first, second = await nodes.race(nodes.any().create(user, "a"), nodes.any().create(user, "b"))
    ended, *made = (
        await nodes.race(
            nodes.any().end_all(first.Token_Sesion, second.Token_Sesion),
            nodes.any().create(user, "c"),
            nodes.any().create(user, "d"),
            nodes.any().find(second.Token_Sesion),
            nodes.any().update(second._replace(Fecha_Expiracion=second.Fecha_Expiracion + 9)),
        )
    )[:3]
    wrong = []
    if await nodes.exists(first, second):
        wrong.append("a session lives after logoutAll")
    # Not by a check: a slide would put the session into the index.
    left = [sesion for sesion in made if await nodes.exists(sesion)]
    if ended != 4 - len(left):
        wrong.append(f"logoutAll ended {ended}, and {len(left)} of 4 live")
    if left:
        token = left[0].Token_Sesion
        ended = await nodes.any().end_all(token, token)
        if ended != len(left) or await nodes.exists(*made):
            wrong.append("a session lives outside the index")
    return wrong


async def sessions_expire(nodes: Nodes, user: int) -> list[str]:
    """3. A session's last moments: operations of all sorts across the second of its expiry, then
    while its key is still there and the session is not."""
    seconds, micros = map(int, await nodes.redis.execute("TIME"))
    expiry = seconds + (1 if micros < 300_000 else 2)  # time enough to get there
    mine, dying, third = [await nodes.any().create(user, name) for name in "abc"]
    token = dying.Token_Sesion
    # It has had its longest life, so that no check slides it.
    keys = session_key(token), index_key(user)
    await nodes.redis.execute("EVAL", AGE, 2, *keys, digest(token), expiry, expiry - MAX)

    if user % 2:  # the others' index stays as it is
        await nodes.until(expiry - 0.1 + 0.15 * nodes.random.random())
        made, *_ = await nodes.race(
            nodes.any().create(user, "d"),
            nodes.any().find(token),
            nodes.any().end(mine.Token_Sesion, third.Token_Sesion),
        )
        third = made

    await nodes.until(expiry + 0.1)
    wrong = []
    if await nodes.any().find(token) is not None:
        wrong.append("a check sees a dead session")
    if await nodes.any().update(dying._replace(Fecha_Inicio=expiry - MAX)) is not None:
        wrong.append("a PUT sees a dead session")
    if await nodes.any().end(token, mine.Token_Sesion) is not Refusal.UNAUTHENTICATED:
        wrong.append("a dead session ends another")
    if await nodes.any().end(mine.Token_Sesion, token) != 0:
        wrong.append("a dead session is ended")
    live = [mine, third]
    if user % 4 < 2:
        live += [await nodes.any().create(user, name) for name in "ef"]
        if await nodes.exists(*live) != PER_USER:
            wrong.append("a dead session counted for the limit, and a live one went")
    if (ended := await nodes.any().end_all(mine.Token_Sesion, token)) != len(live):
        wrong.append(f"logoutAll counts dead sessions: {ended} instead of {len(live)}")
    return wrong


async def sessions_without_expiry(nodes: Nodes, user: int) -> list[str]:
    """4. Every operation runs, some of them cancelled in the middle. The observer looks at the
    keys."""
    sesion = await nodes.any().create(user, "a")
    token = sesion.Token_Sesion
    cut = asyncio.create_task(nodes.any().create(user, "b"))
    for _ in range(nodes.random.randrange(4)):
        await asyncio.sleep(0)
    cut.cancel()
    await nodes.race(
        nodes.any().create(user, "c"),
        nodes.any().find(token),
        nodes.any().update(sesion._replace(Fecha_Expiracion=sesion.Fecha_Expiracion - 9)),
        nodes.any().update(sesion._replace(Estado_Sesion=0)),
        nodes.any().end(token, token),
    )
    with suppress(asyncio.CancelledError):
        await cut
    return []


async def replies_are_lost(nodes: Nodes, user: int) -> list[str]:
    """5. Connections break after a create and before its reply: it makes one session, or where
    every try failed at most one, of which no caller has the token."""
    index = index_key(user)
    try:
        sesion = await nodes.any().create(user, "d")
    except StoreUnavailable:
        left = await nodes.redis.execute("ZCARD", index)
        return [f"a failed create left {left} sessions"] if left > 1 else []
    members = await nodes.redis.execute("ZRANGE", index, 0, -1)
    if members != [digest(sesion.Token_Sesion).encode()]:
        return [f"one create made {len(members)} sessions"]
    return []


async def memory_comes_and_goes(nodes: Nodes, user: int) -> list[str]:
    """6. Redis is full from time to time: checks and logouts do not notice. Creating is refused
    at times, and then nothing is there."""
    made: list[Sesion] = []
    while len(made) < 3:
        await nodes.redis.execute("CONFIG", "SET", "maxmemory", nodes.random.choice((0, 0, 1)))
        with suppress(StoreUnavailable):
            made.append(await nodes.any().create(user, "d"))
    wrong = []
    if await nodes.redis.execute("ZCARD", index_key(user)) != 3:
        wrong.append("a refused create left a session")
    mine = made[0].Token_Sesion
    await nodes.redis.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        found = await nodes.race(*(nodes.any().find(sesion.Token_Sesion) for sesion in made))
        if None in found:
            wrong.append("a check finds no session")
    except StoreUnavailable as error:
        wrong.append(f"a check is refused: {error}")
    try:
        ended = await nodes.any().end(mine, made[1].Token_Sesion)
        all_ended = await nodes.any().end_all(mine, mine)
        if (ended, all_ended) != (1, 2):
            wrong.append(f"logouts ended {ended} and {all_ended}")
    except StoreUnavailable as error:
        wrong.append(f"a logout is refused: {error}")
    return wrong


async def replicas_come_and_go(nodes: Nodes, user: int) -> list[str]:
    """6. Redis refuses writes from time to time: checks answer all the same, and a logout that
    was answered is one."""

    async def toggle() -> None:
        needed = nodes.random.choice((0, 1))
        await nodes.redis.execute("CONFIG", "SET", "min-replicas-to-write", needed)

    sesion = None
    while sesion is None:
        await toggle()
        with suppress(StoreUnavailable):
            sesion = await nodes.any().create(user, "d")
    token, wrong = sesion.Token_Sesion, []
    if await nodes.redis.execute("ZCARD", index_key(user)) != 1:
        wrong.append("a refused create left a session")
    try:
        found = await nodes.race(nodes.any().find(token), toggle(), nodes.any().find(token))
        if None in (found[0], found[2]):
            wrong.append("a check finds no session")
    except StoreUnavailable as error:
        wrong.append(f"a check is refused: {error}")
    ended = None
    while ended is None:
        try:
            ended = await nodes.any().end(token, token)
        except StoreUnavailable:
            if not await nodes.exists(sesion):
                wrong.append("a refused logout happened")
                break
            await toggle()
    if await nodes.exists(sesion):
        wrong.append("a session lives after its logout")
    return wrong


async def records_are_bad(nodes: Nodes, user: int) -> list[str]:
    """7. Checks of good and bad records that go out together: each gets its own answer."""
    made = await asyncio.gather(*(nodes.any().create(user * 8 + i, "d") for i in range(6)))
    bad = {0, nodes.random.randrange(6)}
    for at in bad:
        key = session_key(made[at].Token_Sesion)
        match nodes.random.randrange(4):
            case 0:
                await nodes.redis.execute("SET", key, "x", "EX", 100)
            case 1:
                await nodes.redis.execute("HSET", key, "1", "x")
            case 2:
                await nodes.redis.execute("HSET", key, "1", nodes.random.choice(["", "1 1 1 x"]))
            case 3:
                index = index_key(made[at].ID_Usuario)
                await nodes.redis.execute("SET", index, "x", "EX", 100)
    store = nodes.any()
    order = nodes.random.sample(range(6), 6)
    found = await asyncio.gather(
        *(store.find(made[at].Token_Sesion) for at in order), return_exceptions=True
    )
    wrong = []
    for at, answer in zip(order, found, strict=True):
        if isinstance(answer, BaseException):
            wrong.append(f"a check failed: {answer}")
        elif (answer is None) != (at in bad):
            wrong.append(f"a check of a {'bad' if at in bad else 'good'} record found {answer}")
    return wrong


async def indexes_are_lost(nodes: Nodes, user: int) -> list[str]:
    """2. Redis evicts a user's index, or drops it while its clock is ahead. The sessions that it
    named are used, and all of the user's are ended meanwhile."""
    one, two = [await nodes.any().create(user, name) for name in "ab"]
    caller = (await nodes.any().create(user, "c")).Token_Sesion

    async def lose_and_log_in() -> int | Refusal:
        await nodes.redis.execute("DEL", index_key(user))
        token = (await nodes.any().create(user, "d")).Token_Sesion
        return await nodes.any().end_all(token, token)

    ended, *_ = await nodes.race(
        lose_and_log_in(),
        nodes.any().find(one.Token_Sesion),
        nodes.any().update(two._replace(Fecha_Expiracion=two.Fecha_Expiracion + 9)),
        nodes.any().update(two._replace(Dispositivo="e")),
        nodes.any().end_all(caller, caller) if user % 2 else nodes.any().find(caller),
    )
    wrong = []
    if ended == 0:
        wrong.append("logoutAll ended nothing")
    for token in one.Token_Sesion, two.Token_Sesion, caller:
        if await nodes.any().find(token) is not None:
            wrong.append("a session lives after logoutAll")
    return wrong


SCENARIOS = {
    "logout races slide and PUT": Scenario(logout_races_slide_and_put),
    "logoutAll races create and slide": Scenario(logout_all_races_create_and_slide),
    # Each batch lives through the end of a second, so there are few and they are large.
    "sessions expire": Scenario(sessions_expire, at_once=1000),
    "sessions without expiry": Scenario(sessions_without_expiry),
    "replies are lost": Scenario(replies_are_lost, wrap=LosesReplies),
    "memory comes and goes": Scenario(memory_comes_and_goes),
    "replicas come and go": Scenario(replicas_come_and_go),
    # Not observed: what is wrong in Redis is the scenario's own doing.
    "records are bad": Scenario(records_are_bad, observed=False),
    "indexes are lost": Scenario(indexes_are_lost, observed=False),
}
