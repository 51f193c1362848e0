package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// Types of the calls about consumer groups. They are JSON on the wire, with the keys that `parley group … -o json` prints.
type (
	GroupList        = wire.GroupList
	GroupSummary     = wire.GroupSummary
	GroupDescription = wire.GroupDescription
	GroupMember      = wire.GroupMember
	GroupChange      = wire.GroupChange
)

// Groups lists the groups of a topic, or of all topics when topic is empty. Problems in the answer are of partitions that could
// not be asked: what they know of a group is -1 there, and groups that only they know are missing.
func (c *Client) Groups(ctx context.Context, topic string) (GroupList, error) {
	out, _, err := call(ctx, c, wire.APIGroupList, wire.GroupListRequest{Topic: topic}, func(out *GroupList) *Error { return out.Error })
	return out, err
}

// DescribeGroup describes a group: its members, and where it is in each partition. It fails with ErrGroupNotFound or ErrTopicNotFound.
func (c *Client) DescribeGroup(ctx context.Context, topic, group string) (GroupDescription, error) {
	out, _, err := call(ctx, c, wire.APIGroupDescribe, wire.GroupRequest{Topic: topic, Group: group}, func(out *GroupDescription) *Error { return out.Error })
	return out, err
}

// ResetGroup moves a group to another position in all partitions, also while members run: their leases and
// deliveries from before are void, and they go on from there. An offset belongs to one partition: see ResetGroupPartition.
func (c *Client) ResetGroup(ctx context.Context, topic, group string, to Start) (GroupChange, error) {
	return c.resetGroup(ctx, wire.GroupResetRequest{Topic: topic, Group: group, To: to.text()}, to)
}

// ResetGroupPartition is ResetGroup for one partition.
func (c *Client) ResetGroupPartition(ctx context.Context, topic, group string, partition int32, to Start) (GroupChange, error) {
	return c.resetGroup(ctx, wire.GroupResetRequest{Topic: topic, Group: group, To: to.text(), Partition: &partition}, to)
}

func (c *Client) resetGroup(ctx context.Context, req wire.GroupResetRequest, to Start) (GroupChange, error) {
	if err := to.check(); err != nil {
		return GroupChange{}, fmt.Errorf("reset group %s of %s: %w", req.Group, req.Topic, err)
	}
	out, _, err := call(ctx, c, wire.APIGroupReset, req, func(out *GroupChange) *Error { return out.Error })
	return out, err
}

// DeleteGroup forgets a group. Members that still run make it anew.
func (c *Client) DeleteGroup(ctx context.Context, topic, group string) (GroupChange, error) {
	out, unsure, err := call(ctx, c, wire.APIGroupDelete, wire.GroupRequest{Topic: topic, Group: group}, func(out *GroupChange) *Error { return out.Error })
	if unsure && errors.Is(err, ErrGroupNotFound) {
		return GroupChange{Topic: topic, Group: group, Change: "deleted"}, nil
	}
	return out, err
}

// redriveWait is how long a broker may work on one request to redrive.
const redriveWait = 15 * time.Second

// RedriveGroup puts up to limit dead letters of a group back into its topic, all there are when limit is 0, and says how many it
// were. They come to the group as new records. After a failure, or when ctx ends, calling again goes on.
func (c *Client) RedriveGroup(ctx context.Context, topic, group string, limit int) (redriven int, err error) {
	tries, progress := 0, time.Now()
	for more := true; more && (limit == 0 || redriven < limit); {
		req := wire.GroupRedriveRequest{Topic: topic, Group: group, Limit: wire.MaxRedrive}
		if limit > 0 {
			req.Limit = min(req.Limit, limit-redriven)
		}
		data, err := json.Marshal(req)
		if err != nil {
			return redriven, fmt.Errorf("encode request: %w", err)
		}
		out, err := tryOn(ctx, c.requests(), wire.APIGroupRedrive, data, redriveWait, func(out *wire.GroupRedriven) *Error { return out.Error })
		if err == nil {
			redriven, more, tries = redriven+out.Redriven, out.More, 0
			progress = time.Now()
			continue
		}
		e := asError(err)
		if e == nil || !e.Retriable || tries >= redriveTries || time.Since(progress) > redrivePatience {
			return redriven, fmt.Errorf("redrive group %s of %s: %w", group, topic, err)
		}
		tries++
		if pause := c.pause(ctx, backoff(tries)); pause != nil {
			return redriven, fmt.Errorf("redrive group %s of %s: %w (last: %w)", group, topic, pause, err)
		}
	}
	return redriven, nil
}

// redrivePatience bounds how long nothing may come of it: requests that are not answered take their time.
const redrivePatience = 30 * time.Second

// redriveTries is how often in a row a request to redrive may fail.
const redriveTries = 20
