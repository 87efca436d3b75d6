"""Call a server by KServe's own client and print what came back as JSON; run by an interpreter that has kserve."""

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

ROWS = np.array([[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]], dtype=np.float32)


async def calls(address: str) -> dict[str, Any]:
    """Ask everything that the client can."""
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    told: dict[str, Any] = {
        "live": await client.is_server_live(address),
        "ready": await client.is_server_ready(address),
        "model ready": await client.is_model_ready(address, "line"),
    }
    for name, binary in (("json", False), ("binary", True)):
        given = InferInput("input", list(ROWS.shape), "FP32")
        given.set_data_from_numpy(ROWS, binary_data=binary)
        outputs = [RequestedOutput(each, parameters={"binary_data": binary}) for each in ("mean", "variance")]
        request = InferRequest(
            "line", [given], request_id="seven", parameters={"passes": 20, "seed": 3}, request_outputs=outputs
        )
        answer = await client.infer(address, request, model_name="line")
        told[name] = {each.name: each.as_numpy().tolist() for each in answer.outputs}
        told[f"{name} id"], told[f"{name} model"] = answer.id, answer.model_name
    try:
        await client.infer(address, {"inputs": []}, model_name="nobody")
    except httpx.HTTPStatusError as error:
        told["error"] = str(error)
    await client.close()
    return told


print(json.dumps(asyncio.run(calls(sys.argv[1]))))
