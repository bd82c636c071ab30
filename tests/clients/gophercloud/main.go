// Follows one import from create to download with the unmodified gophercloud, and prints what it saw as JSON.
//
// Usage: main AUTH_URL USER PASSWORD PROJECT SOURCE_URL FORMAT NAME
package main

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gophercloud/gophercloud"
	"github.com/gophercloud/gophercloud/openstack"
	"github.com/gophercloud/gophercloud/openstack/imageservice/v2/imagedata"
	"github.com/gophercloud/gophercloud/openstack/imageservice/v2/images"
	"github.com/gophercloud/gophercloud/openstack/imageservice/v2/tasks"
	"github.com/gophercloud/gophercloud/pagination"
)

const waitFor = 60 * time.Second

type report struct {
	Created        tasks.Task   `json:"created"`
	Final          tasks.Task   `json:"final"`
	Image          images.Image `json:"image"`
	Size           int64        `json:"size"`
	Purpose        interface{}  `json:"purpose"`
	Downloaded     string       `json:"downloaded_sha512"`
	ListedTwoByTwo []string     `json:"listed_two_by_two"`
	Pages          int          `json:"pages"`
	UnknownTask    string       `json:"unknown_task"`
	BadCreate      string       `json:"bad_create"`
	AfterDelete    string       `json:"after_delete"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	client, err := connect(args[0], args[1], args[2], args[3])
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var seen report
	created, err := create(client, args[4], args[5], args[6])
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	seen.Created = *created
	final, err := wait(client, created.ID)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	seen.Final = *final
	if final.Status == string(tasks.TaskStatusSuccess) {
		if err := follow(client, &seen); err != nil {
			return err
		}
	}
	if err := list(client, &seen); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	_, err = tasks.Get(client, "11111111-2222-4333-8444-555555555555").Extract()
	seen.UnknownTask = kind(err)
	_, err = create(client, "file:///etc/passwd", "raw", "x")
	seen.BadCreate = kind(err)
	return json.NewEncoder(os.Stdout).Encode(seen)
}

func connect(url, user, password, project string) (*gophercloud.ServiceClient, error) {
	provider, err := openstack.AuthenticatedClient(gophercloud.AuthOptions{
		IdentityEndpoint: url,
		Username:         user,
		Password:         password,
		DomainName:       "Default",
		Scope:            &gophercloud.AuthScope{ProjectName: project, DomainName: "Default"},
	})
	if err != nil {
		return nil, err
	}
	return openstack.NewImageServiceV2(provider, gophercloud.EndpointOpts{Region: "RegionOne"})
}

func create(client *gophercloud.ServiceClient, source, format, name string) (*tasks.Task, error) {
	return tasks.Create(client, tasks.CreateOpts{
		Type: "import",
		Input: map[string]interface{}{
			"import_from":        source,
			"import_from_format": format,
			"image_properties": map[string]interface{}{
				"name": name, "disk_format": format, "container_format": "bare", "purpose": "test",
			},
		},
	}).Extract()
}

func wait(client *gophercloud.ServiceClient, id string) (*tasks.Task, error) {
	for end := time.Now().Add(waitFor); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		task, err := tasks.Get(client, id).Extract()
		if err != nil {
			return nil, err
		}
		if task.Status == string(tasks.TaskStatusSuccess) || task.Status == string(tasks.TaskStatusFailure) {
			return task, nil
		}
	}
	return nil, fmt.Errorf("task %s is not final after %s", id, waitFor)
}

func follow(client *gophercloud.ServiceClient, seen *report) error {
	id := seen.Final.Result["image_id"].(string)
	image, err := images.Get(client, id).Extract()
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	seen.Image, seen.Size, seen.Purpose = *image, image.SizeBytes, image.Properties["purpose"]
	body, err := imagedata.Download(client, id).Extract()
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	digest := sha512.New()
	if _, err := io.Copy(digest, body); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	seen.Downloaded = hex.EncodeToString(digest.Sum(nil))
	if err := images.Delete(client, id).ExtractErr(); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	_, err = images.Get(client, id).Extract()
	seen.AfterDelete = kind(err)
	return nil
}

func list(client *gophercloud.ServiceClient, seen *report) error {
	return tasks.List(client, tasks.ListOpts{Limit: 2, SortKey: "created_at", SortDir: "asc"}).EachPage(
		func(page pagination.Page) (bool, error) {
			found, err := tasks.ExtractTasks(page)
			seen.Pages++
			for _, task := range found {
				seen.ListedTwoByTwo = append(seen.ListedTwoByTwo, task.ID)
			}
			return true, err
		})
}

func kind(err error) string {
	return fmt.Sprintf("%T", err)
}
