// An API node on Express: `npm install && SESIONES_URL=http://127.0.0.1:8000 node app.mjs`
import express from "express";
import { sesiones } from "./sesiones.mjs";

const app = express();
app.use(sesiones(process.env.SESIONES_URL ?? "http://127.0.0.1:8000"));
app.get("/yo", (req, res) => res.json({ usuario: req.sesion.ID_Usuario }));

const listener = app.listen(Number(process.env.PORT ?? 9001), "127.0.0.1", () =>
  console.log(`listening on http://127.0.0.1:${listener.address().port}`),
);
