// An API node in Go, on the standard library: SESIONES_URL=http://127.0.0.1:8000 go run .
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"time"
)

type contextKey struct{}

var number = regexp.MustCompile(`^[0-9]+$`)

// Usuario is the ID_Usuario of a request that Sesiones has let through.
func Usuario(r *http.Request) string {
	usuario, _ := r.Context().Value(contextKey{}).(string)
	return usuario
}

// Sesiones asks the service at the URL about each request, over HTTP.
func Sesiones(url string, next http.Handler) http.Handler {
	client := &http.Client{
		Timeout: time.Second,
		// The service closes a connection that was idle for 75 s.
		Transport: &http.Transport{MaxIdleConnsPerHost: 32, IdleConnTimeout: 60 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ask, err := http.NewRequestWithContext(r.Context(), "GET", url+"/sesiones/verificar", nil)
		if err != nil {
			panic(err) // the URL
		}
		// All values that the client sent, because two credentials are none.
		for _, name := range []string{"X-Auth-Token", "Authorization"} {
			ask.Header[name] = r.Header.Values(name)
		}
		w.Header().Set("Cache-Control", "no-store")
		reply, err := client.Do(ask)
		if err != nil {
			unavailable(w)
			return
		}
		defer reply.Body.Close()
		usuario := reply.Header.Get("X-ID-Usuario")
		switch {
		// A 200 without an identity is not from sesiones.
		case reply.StatusCode == http.StatusOK && number.MatchString(usuario):
			ctx := context.WithValue(r.Context(), contextKey{}, usuario)
			next.ServeHTTP(w, r.WithContext(ctx))
		case reply.StatusCode == http.StatusUnauthorized:
			for _, name := range []string{"WWW-Authenticate", "Content-Type"} {
				if value := reply.Header.Get(name); value != "" {
					w.Header().Set(name, value)
				}
			}
			w.WriteHeader(http.StatusUnauthorized)
			io.Copy(w, reply.Body)
		default:
			unavailable(w)
		}
	})
}

func unavailable(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
}

func main() {
	me := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"usuario":%s}`, Usuario(r))
	})
	mux := http.NewServeMux()
	mux.Handle("/yo", Sesiones(os.Getenv("SESIONES_URL"), me))
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		panic(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	panic(server.Serve(listener))
}
