"""What one user goes through on several nodes at once: logins that end sessions, lists, and the
endings of all sessions but one. Each returns what went wrong."""

import asyncio

from sesiones import tokens
from sesiones.sesion import Login, Refusal
from tests.harness.records import MAX, NEIGHBOUR, digest, index_key, session_key
from tests.store.races import AGE, PER_USER, Nodes, Scenario

LOGINS = 100
"""Of a storm."""


async def list_races_expiry(nodes: Nodes, user: int) -> list[str]:
    """Lists across the second in which a session expires, and while its key is still there."""
    seconds, micros = map(int, await nodes.redis.execute("TIME"))
    expiry = seconds + (1 if micros < 300_000 else 2)  # time enough to get there
    mine, dying, third = [await nodes.any().create(user, name) for name in "abc"]
    token = dying.Token_Sesion
    # It has had its longest life, so that no check slides it.
    keys = session_key(token), index_key(user)
    await nodes.redis.execute("EVAL", AGE, 2, *keys, digest(token), expiry, expiry - MAX)
    live = {mine.ID_Sesion, third.ID_Sesion}
    wrong = []

    async def look(*, dead: bool) -> None:
        own = await nodes.any().list_sessions(mine.Token_Sesion)
        listed = {each.ID_Sesion for each in own or []}
        if not live <= listed:
            wrong.append("a list lacks a live session")
        if dead and dying.ID_Sesion in listed:
            wrong.append("a list has a dead session")
        for each in own or []:
            if each.ID_Sesion not in {*live, dying.ID_Sesion}:
                wrong.append("a list has a session of another user")

    await nodes.until(expiry - 0.1 + 0.15 * nodes.random.random())
    await nodes.race(*(look(dead=False) for _ in range(2)), nodes.any().find(token))
    await nodes.until(expiry + 0.1)
    await nodes.race(look(dead=True), look(dead=True))
    if await nodes.any().list_sessions(token) is not None:
        wrong.append("a dead session lists the others")
    return wrong


async def logout_others_races_create(nodes: Nodes, user: int) -> list[str]:
    """Sessions that are made and used while all but one are being ended."""
    mine, other = [await nodes.any().create(user, name) for name in "ab"]
    ended, *made = (
        await nodes.race(
            nodes.any().end_others(mine.Token_Sesion),
            nodes.any().create(user, "c"),
            nodes.any().create(user, "d"),
            nodes.any().find(other.Token_Sesion),
            nodes.any().find(mine.Token_Sesion),
        )
    )[:3]
    wrong = []
    if await nodes.exists(other):
        wrong.append("another session lives after logoutOthers")
    if not await nodes.exists(mine):
        wrong.append("logoutOthers ended the caller's session")
    # Not by a check: a slide would put the session into the index.
    left = [sesion for sesion in made if await nodes.exists(sesion)]
    if ended != 3 - len(left):
        wrong.append(f"logoutOthers ended {ended}, and {len(left)} of 3 live")
    again = await nodes.any().end_others(mine.Token_Sesion)
    if again != len(left) or await nodes.exists(*made):
        wrong.append("a session lives outside the index")
    return wrong


async def logins_that_close_the_others_race(nodes: Nodes, user: int) -> list[str]:
    """Exactly one remains, whichever is the last."""
    await nodes.any().create(user, "old")
    made = await nodes.race(
        *(nodes.any().create(user, name, Login(Cerrar_Otras=1)) for name in "abc")
    )
    alive = await nodes.exists(*made)
    indexed = await nodes.redis.execute("ZCARD", index_key(user))
    if (alive, indexed) != (1, 1):
        return [f"{alive} sessions are left, and the index has {indexed}"]
    return []


async def logins_storm_a_limit(nodes: Nodes, user: int) -> list[str]:
    """Logins at once, looked at while they go on: never one above the limit."""
    most = 0

    async def watch() -> None:
        nonlocal most
        for _ in range(LOGINS // 2):
            most = max(most, int(await nodes.redis.execute("ZCARD", index_key(user))))

    *made, _ = await nodes.race(
        *(nodes.any().create(user, "d") for _ in range(LOGINS)),
        watch(),
    )
    alive = await nodes.exists(*made)
    if most > PER_USER or alive != PER_USER:
        return [f"there were {most} sessions, and {alive} are left, of {PER_USER}"]
    return []


async def login_races_the_logout_of_what_it_replaces(nodes: Nodes, user: int) -> list[str]:
    """The old session, of the user or of another one, is logged out by itself meanwhile."""
    owner = (user, NEIGHBOUR + 4096 * user, user + 100_000)[user % 3]
    old = await nodes.any().create(owner, "old")
    token = old.Token_Sesion
    new, ended, _ = await nodes.race(
        nodes.any().create(user, "new", Login(Token_Anterior=token)),
        nodes.any().end(token, token),
        nodes.any().find(token),
    )
    wrong = []
    if await nodes.exists(old) or await nodes.any().find(token) is not None:
        wrong.append("the old session lives")
    if not await nodes.exists(new):
        wrong.append("the new session does not live")
    if ended not in (1, Refusal.UNAUTHENTICATED):
        wrong.append(f"the logout ended {ended}")
    if await nodes.redis.execute("ZSCORE", index_key(owner), digest(token)):
        wrong.append("the old session is in the index")
    return wrong


async def login_is_tried_again(nodes: Nodes, user: int) -> list[str]:
    """A login's second try, while other logins go on: it makes and ends nothing."""
    old = await nodes.any().create(user, "old")
    token = tokens.make(user)
    login = Login(Cerrar_Otras=1, Sustituye=old.ID_Sesion, Token_Anterior=old.Token_Sesion)
    first = await nodes.any()._create(user, "new", token, login)
    second, *others = await nodes.race(
        nodes.any()._create(user, "new", token, login),
        nodes.any().create(user, "a"),
        nodes.any().create(user, "b"),
    )
    wrong = []
    if second[:4] != first[:4]:
        wrong.append("a second try made another session")
    if await nodes.exists(*others) != 2:
        wrong.append("a second try ended a session")
    members = await nodes.redis.execute("ZCARD", index_key(user))
    if members != 3:
        wrong.append(f"there are {members} sessions instead of 3")
    return wrong


async def login_races_the_logout_of_what_it_substitutes(nodes: Nodes, user: int) -> list[str]:
    """The picked session is logged out meanwhile: then there is room, and no other one ends."""
    kept = await nodes.any().create(user, "kept")
    picked = await nodes.any().create(user, "picked")
    login = Login(Sustituye=picked.ID_Sesion, Max_Sesiones=2)
    new, ended = await nodes.race(
        nodes.any().create(user, "new", login),
        nodes.any().end(kept.Token_Sesion, picked.Token_Sesion),
    )
    await asyncio.sleep(0)
    wrong = []
    if await nodes.exists(picked):
        wrong.append("the picked session lives")
    if await nodes.exists(kept, new) != 2:
        wrong.append("a session ended that was not picked")
    if ended not in (0, 1):
        wrong.append(f"the logout ended {ended}")
    return wrong


LOGIN_SCENARIOS = {
    # Each batch lives through the end of a second, so there are few and they are large.
    "list races expiry": Scenario(list_races_expiry, at_once=400),
    "logoutOthers races create": Scenario(logout_others_races_create),
    "Cerrar_Otras races Cerrar_Otras": Scenario(logins_that_close_the_others_race),
    "logins storm a limit": Scenario(logins_storm_a_limit, at_once=2, one_in=20),
    "Token_Anterior races logout": Scenario(login_races_the_logout_of_what_it_replaces),
    "a login is tried again": Scenario(login_is_tried_again),
    "Sustituye races logout": Scenario(login_races_the_logout_of_what_it_substitutes),
}
