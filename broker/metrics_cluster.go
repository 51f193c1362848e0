package broker

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of what brokers do together. Those that name a peer are absent while a broker is alone.

var (
	clusterDesc = func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("parley_"+name, help, labels, nil)
	}

	descInSync     = partDesc("in_sync_replicas", "Replicas that lack nothing, the leader's own included, as the leader sees it; only where it leads.")
	descLeaders    = clusterDesc("partitions_leading", "Partitions that this broker leads.")
	descFollowers  = clusterDesc("partitions_following", "Partitions that another broker leads and this one has a replica of.")
	descLeaderless = clusterDesc("partitions_without_leader", "Partitions with a replica here that have no leader, as far as this broker knows.")
	descLacking    = clusterDesc("partitions_under_replicated", "Partitions that this broker leads some replica of which is not in sync.")
	descStarting   = clusterDesc("partitions_catching_up", "Replicas here that have not had all yet that was committed before they were opened.")
	descElected    = clusterDesc("elections_won_total", "Leaderships that this broker has begun.")
	descChanges    = clusterDesc("leader_changes_total", "Changes of a partition's leader that this broker has heard of.")

	descCarried   = clusterDesc("epoch_carried", "Newest epoch that this broker has carried out.")
	descBehind    = clusterDesc("epochs_behind", "Epochs that this broker has heard of and doesn't know yet.")
	descProposer  = clusterDesc("epoch_proposer", "1 when this broker is the one that proposes epochs, as far as it knows.")
	descCouncil   = clusterDesc("council_members", "Brokers in the council.")
	descReachable = clusterDesc("council_reachable", "Brokers of the council that can be reached, this one included where it is a member.")
	descMember    = clusterDesc("council_member", "1 when this broker is in the council.")

	descPeerUp    = clusterDesc("mesh_reachable", "1 while both links to the peer are up and it has been heard of late.", "peer")
	descLinkUp    = clusterDesc("mesh_link_up", "1 while the link to the peer is up.", "peer", "link")
	descPending   = clusterDesc("mesh_pending_bytes", "Bytes that wait for the peer, or are sent and not dealt with by it.", "peer", "link")
	descRTT       = clusterDesc("mesh_rtt_seconds", "Round trip of the newest ping on the control link.", "peer")
	descConnects  = clusterDesc("mesh_connects_total", "Links to the peer that came up.", "peer")
	descRouted    = clusterDesc("mesh_routed_total", "Messages of live subscribers sent to the peer.", "peer")
	descDropped   = clusterDesc("mesh_dropped_total", "Messages and replies that could not be sent to the peer.", "peer")
	descRefusals  = clusterDesc("mesh_refused_total", "Connections to the peer port that were refused.")
	descRequests  = clusterDesc("mesh_requests_total", "Requests of peers that were handled.")
	descLostSends = clusterDesc("mesh_lost_sends_total", "One-way messages that no handler got.")

	descForwards = clusterDesc("forwards_total", "Publishes and fetches handed to the peer, which leads the partition.", "peer")
	descUnderWay = clusterDesc("forwards_under_way", "Forwards to the peer that are not answered yet.", "peer")
	descBusy     = clusterDesc("forwards_busy_total", "Forwards and sends to the peer refused because too much was under way.", "peer")
	descTakenIn  = clusterDesc("forwarded_runs_total", "Runs of publishes and fetches taken from the peer.", "peer")
)

type sample func(d *prometheus.Desc, v float64, labels ...string)

// together collects them. compare_status.go has those of comparisons.
func (b *Broker) together(r *routes, gauge, counter sample) {
	leading, following, leaderless, lacking, starting := 0, 0, 0, 0, 0
	for _, s := range r.byShard {
		if !s.local {
			continue
		}
		part, at := s.partition.Load(), s.lead.load().broker
		if part != nil && !s.current.Load() {
			starting++
		}
		switch {
		case part != nil && part.Leading():
			leading++
			in := s.inSync(b)
			gauge(descInSync, float64(len(in)), s.topic, strconv.Itoa(int(s.number)))
			if len(in)+len(s.late(b, in)) < len(s.replicas()) {
				lacking++
			}
		case at == 0 || at == b.self():
			leaderless++
		default:
			following++
		}
	}
	gauge(descLeaders, float64(leading))
	gauge(descFollowers, float64(following))
	gauge(descLeaderless, float64(leaderless))
	gauge(descLacking, float64(lacking))
	gauge(descStarting, float64(starting))
	b.comparer.collect(gauge, counter)
	counter(descElected, float64(b.leaders.won.Load()))
	counter(descChanges, float64(b.leaders.changes.Load()))

	gauge(descCarried, float64(b.carrier.carriedOut()))
	gauge(descBehind, float64(b.epochs.Behind()))
	gauge(descProposer, flag(b.epochs.Leader() == b.self()))
	council := b.epochs.Current().Council
	reachable, member := 0, false
	for _, id := range council {
		if b.peers.alive(id) {
			reachable++
		}
		member = member || id == b.self()
	}
	gauge(descCouncil, float64(len(council)))
	gauge(descReachable, float64(reachable))
	gauge(descMember, flag(member))
	if b.peers.mesh != nil {
		b.links(gauge, counter)
	}
}

func (b *Broker) links(gauge, counter sample) {
	stats := b.peers.mesh.Stats()
	counter(descRefusals, float64(stats.Refused))
	counter(descRequests, float64(stats.Requests))
	counter(descLostSends, float64(stats.LostSends))
	for _, s := range b.peers.mesh.Peers() {
		gauge(descPeerUp, flag(s.Reachable), s.Name)
		gauge(descLinkUp, flag(s.Control), s.Name, "control")
		gauge(descLinkUp, flag(s.Data), s.Name, "data")
		gauge(descPending, float64(s.PendingControl), s.Name, "control")
		gauge(descPending, float64(s.PendingBytes), s.Name, "data")
		gauge(descRTT, s.RTT.Seconds(), s.Name)
		counter(descConnects, float64(s.Connects), s.Name)
		counter(descRouted, float64(s.Routed), s.Name)
		counter(descDropped, float64(s.Dropped), s.Name)
		counter(descForwards, float64(s.Forwards), s.Name)
		gauge(descUnderWay, float64(b.forwards.waiting(s.Broker)), s.Name)
		counter(descBusy, float64(s.Busy), s.Name)
		counter(descTakenIn, float64(s.TakenIn), s.Name)
	}
}
