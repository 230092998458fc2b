// Uses the types that openapi-typescript has made, with openapi-fetch: `node use.js URL SERVICE_KEY`.
import createClient from "openapi-fetch";
import type { components, paths } from "./sesiones.js";

declare const process: { argv: string[] };
const [url, key] = process.argv.slice(2);
const api = createClient<paths>({ baseUrl: url });

function bearer(token: string) {
  return { authorization: `Bearer ${token}` };
}

function equal(found: unknown, expected: unknown) {
  const [one, other] = [JSON.stringify(found), JSON.stringify(expected)];
  if (one !== other) throw new Error(`${one} is not ${other}`);
}

async function create(device: string): Promise<components["schemas"]["Sesion"]> {
  const body = { ID_Usuario: 8, Dispositivo: device };
  const { data } = await api.POST("/sesiones", { headers: bearer(key), body });
  if (!data) throw new Error("no session");
  return data;
}

const sesion = await create("portátil ☃");
const headers = bearer(sesion.Token_Sesion);
const { data: found } = await api.GET("/sesiones/self", { headers });
equal(found?.Dispositivo, "portátil ☃");
const checked = await api.GET("/sesiones/verificar", { headers });
equal(checked.response.headers.get("x-id-usuario"), "8");
const { data: changed } = await api.PUT("/sesiones", {
  headers: bearer(key),
  body: { ...sesion, Dispositivo: "tableta" },
});
equal(changed?.Dispositivo, "tableta");

const other = await create("móvil");
const { data: own } = await api.GET("/sesiones", { headers });
equal(own?.Sesiones.length, 2);
equal(own?.Sesiones.filter((each) => each.Actual).map((each) => each.ID_Sesion), [sesion.ID_Sesion]);
const path = { ID_Sesion: other.ID_Sesion };
const { data: ended } = await api.DELETE("/sesiones/{ID_Sesion}", { headers, params: { path } });
equal(ended?.Sesiones_Eliminadas, 1);
const { data: others } = await api.DELETE("/sesiones/logoutOthers", { headers });
equal(others?.Sesiones_Eliminadas, 0);
const { data: users } = await api.GET("/sesiones/usuarios/{ID_Usuario}", {
  headers: bearer(key),
  params: { path: { ID_Usuario: 8 } },
});
equal(users?.Sesiones.map((each) => each.Dispositivo), ["tableta"]);

// openapi-fetch encodes a form when the header asks for it.
const form = { ...bearer(key), "content-type": "application/x-www-form-urlencoded" };
const query = { headers: form, body: { token: sesion.Token_Sesion } };
const { data: known } = await api.POST("/sesiones/introspeccion", query);
equal(known?.active, true);
const { data: out } = await api.DELETE("/sesiones/logout", {
  headers,
  body: { Token_Sesion: sesion.Token_Sesion },
});
equal(out?.Sesiones_Eliminadas, 1);
const { data: unknown } = await api.POST("/sesiones/introspeccion", query);
equal(unknown, { active: false });
equal((await api.POST("/sesiones/revocacion", query)).response.status, 200);
const { error } = await api.GET("/sesiones/self", { headers });
equal([error?.status, error?.title], [401, "No autorizado"]);
const refused = await api.POST("/sesiones", {
  headers: bearer(key),
  body: { ID_Usuario: -1, Dispositivo: "" },
});
equal(refused.error?.errores?.map((each) => each.campo), ["ID_Usuario", "Dispositivo"]);
