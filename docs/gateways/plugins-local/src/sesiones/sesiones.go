// Package sesiones does for traefik-web.yml what Traefik's own middlewares cannot: it refuses
// foreign origins, and makes the token of the cookie a header. Traefik interprets it.
package sesiones

import (
	"context"
	"net/http"
	"regexp"
)

// Config has the origins whose pages may ask.
type Config struct {
	Origins []string `json:"origins"`
}

// CreateConfig is called by Traefik.
func CreateConfig() *Config { return &Config{} }

var session = regexp.MustCompile(`(^|;)\s*__Host-sesion(\s*)=([^;]*)`)

const foreign = `{"type":"about:blank","title":"Prohibido","status":403,"detail":"El origen de la petición no está permitido."}`

// New is called by Traefik for each middleware.
func New(_ context.Context, next http.Handler, config *Config, _ string) (http.Handler, error) {
	allowed := map[string]bool{}
	for _, origin := range config.Origins {
		allowed[origin] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Another site's page asks: a forged form (CSRF) or a WebSocket. Browsers send no Origin
		// with links and images, whose GET must not change anything.
		for _, origin := range r.Header["Origin"] {
			if !allowed[origin] {
				w.Header().Set("Cache-Control", "no-store")
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusForbidden)
				_, _ = w.Write([]byte(foreign))
				return
			}
		}
		// On public paths too the identity is never the client's, and only a gateway may say that a
		// check is no use of the session.
		for _, name := range []string{"X-Id-Usuario", "X-Id-Sesion", "X-Fecha-Expiracion", "X-Sin-Deslizar"} {
			r.Header.Del(name)
		}
		// With the token of a header, that of the cookie is one too many.
		lines := r.Header["Cookie"]
		r.Header.Del("Cookie")
		for _, line := range lines {
			for _, found := range session.FindAllStringSubmatch(line, -1) {
				if found[2] == "" {
					r.Header.Add("X-Auth-Token", found[3])
				}
			}
			if others := session.ReplaceAllString(line, ""); others != "" {
				r.Header.Add("Cookie", others)
			}
		}
		next.ServeHTTP(w, r)
	}), nil
}
