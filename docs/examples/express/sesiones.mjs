// An Express middleware that asks sesiones about each request, over HTTP. Needs Node.js 20.

const FIELDS = ["x-id-usuario", "x-id-sesion", "x-fecha-expiracion"];
const PASSED_ON = ["www-authenticate", "content-type"];

/** `url`: of a node of sesiones, such as http://127.0.0.1:8000. Sets `req.sesion`. */
export function sesiones(url) {
  return async (req, res, next) => {
    // All values that the client sent, because two credentials are none: req.headers keeps one.
    const headers = new Headers();
    for (const name of ["x-auth-token", "authorization"])
      for (const value of req.headersDistinct[name] ?? []) headers.append(name, value);
    let reply, body;
    try {
      reply = await ask(`${url}/sesiones/verificar`, headers);
      body = Buffer.from(await reply.arrayBuffer());
    } catch {
      return res.status(503).set("retry-after", "1").end();
    }
    res.set("cache-control", "no-store");
    // A 200 without an identity is not from sesiones. Number(null) would be user 0.
    if (reply.status === 200 && FIELDS.every((name) => /^\d+$/.test(reply.headers.get(name)))) {
      const [usuario, sesion, expiracion] = FIELDS.map((name) => Number(reply.headers.get(name)));
      req.sesion = { ID_Usuario: usuario, ID_Sesion: sesion, Fecha_Expiracion: expiracion };
      return next();
    }
    if (reply.status !== 401) return res.status(503).set("retry-after", "1").end();
    for (const name of PASSED_ON)
      if (reply.headers.has(name)) res.set(name, reply.headers.get(name));
    res.status(401).send(body);
  };
}

/** A check may be repeated: a connection that the service has just closed is no outage. */
async function ask(url, headers) {
  const signal = AbortSignal.timeout(1000);
  const once = () => fetch(url, { headers, signal, redirect: "manual" });
  return once().catch(once);
}
