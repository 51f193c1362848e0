package nats

import (
	"encoding/json"
	"net"
	"runtime"
	"strconv"

	"github.com/parleymq/parley/broker/protocol"
)

// natsVersion is the server version that clients take features from: headers,
// no responders, lame duck and the rest of core NATS as this one had it.
const natsVersion = "2.10.29"

// serverInfo is the body of INFO.
type serverInfo struct {
	ServerID     string   `json:"server_id"`
	ServerName   string   `json:"server_name"`
	Version      string   `json:"version"`
	Proto        int      `json:"proto"`
	Go           string   `json:"go"`
	Host         string   `json:"host"`
	Port         int      `json:"port"`
	Headers      bool     `json:"headers"`
	AuthRequired bool     `json:"auth_required,omitempty"`
	TLSRequired  bool     `json:"tls_required,omitempty"`
	TLSVerify    bool     `json:"tls_verify,omitempty"`
	MaxPayload   int64    `json:"max_payload"`
	JetStream    bool     `json:"jetstream"`
	ClientID     uint64   `json:"client_id"`
	ClientIP     string   `json:"client_ip"`
	Nonce        string   `json:"nonce,omitempty"`
	Cluster      string   `json:"cluster,omitempty"`
	ConnectURLs  []string `json:"connect_urls,omitempty"`
	LameDuck     bool     `json:"ldm,omitempty"`
	Parley       string   `json:"parley"` // this broker's own version
}

// infoLine is INFO as this connection sees it now.
func (c *conn) infoLine(i protocol.Info, lameDuck bool) []byte {
	s := c.server
	local := c.raw.LocalAddr().String()
	host, port := splitAddress(local)
	lameDuck = lameDuck || i.LameDuck
	info := serverInfo{
		ServerID:     i.ServerID,
		ServerName:   i.ServerName,
		Version:      natsVersion,
		Proto:        1,
		Go:           runtime.Version(),
		Host:         host,
		Port:         port,
		Headers:      true,
		AuthRequired: s.config.Authenticator != nil,
		TLSRequired:  s.config.TLS != nil,
		TLSVerify:    s.verifiesClients(),
		MaxPayload:   i.MaxPayload,
		ClientID:     c.id,
		ClientIP:     c.remoteHost,
		Nonce:        c.nonce,
		Cluster:      i.Cluster,
		LameDuck:     lameDuck,
		Parley:       i.Version,
	}
	// A lone broker is not worth announcing: the client knows it.
	if len(i.Peers) > 0 {
		if !lameDuck {
			own := i.Advertise
			if own == "" {
				own = local
			}
			info.ConnectURLs = append(info.ConnectURLs, own)
		}
		info.ConnectURLs = append(info.ConnectURLs, i.Peers...)
	}
	body, err := json.Marshal(&info)
	if err != nil {
		panic("INFO cannot be encoded: " + err.Error()) // strings and numbers only
	}
	line := make([]byte, 0, len(body)+8)
	line = append(line, "INFO "...)
	line = append(line, body...)
	return append(line, crlf...)
}

func splitAddress(address string) (host string, port int) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return address, 0
	}
	port, _ = strconv.Atoi(p)
	return host, port
}
